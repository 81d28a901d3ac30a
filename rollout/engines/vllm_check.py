"""Asks vLLM's workers piece by piece what they hold; the workers' side is `worker`, by `vllm_tensors`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from rollout.engines.base import CHECK_BYTES, TensorReport
from shared.errors import EngineError

WORKER_EXTENSION = "rollout.engines.worker.WorkerExtension"

Call = Callable[[Coroutine[Any, Any, Any], str], Awaitable[Any]]  # of the engine, while it lives


async def check_tensors(llm: AsyncLLM, call: Call, folder: Path) -> TensorReport:
    """Compares every worker's tensors with the folder's; requests are served between two pieces. Raises EngineError."""
    report, piece, pieces = TensorReport(), 0, 1
    while piece < pieces:
        ask = llm.collective_rpc("check_tensors_piece", args=(str(folder), piece, CHECK_BYTES))
        try:
            answers: list[tuple[dict[str, Any], int]] = await call(ask, "check the loaded tensors")
        except EngineError:
            raise
        except Exception as error:  # vLLM passes worker errors on as bare Exception
            raise EngineError(f"could not check the loaded tensors: {error}") from error
        for found, _ in answers:
            report += _report(found)
        pieces = max(count for _, count in answers)
        piece += 1
    return report


def _report(fields: dict[str, Any]) -> TensorReport:
    """A worker's report, which crossed a process boundary: its tuples came as lists."""
    wrong, unchecked = (tuple(fields.pop(name, ())) for name in ("wrong", "unchecked"))
    return TensorReport(wrong, unchecked, **fields)
