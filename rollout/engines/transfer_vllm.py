"""The three things that vLLM is asked for when weights come over the wire: join, receive, and forget a broken try.

Seen with vLLM 0.32 on CPU: after an `update_weights` that broke off, the next `reload_weights` fails ("'Parameter'
object has no attribute 'weight_loader'"), and `finish_weight_update` refuses. The worker's own extension ends such
an update; then files and updates load again.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest
from vllm.v1.engine.async_llm import AsyncLLM

from rollout.engines.transfer import Meeting, Receiving, init_info, update_info
from rollout.engines.transfer_gloo import LM_HEAD
from shared.errors import EngineError, TransferError
from shared.tensor_table import TensorRow

Ask = Callable[[Coroutine[Any, Any, Any], str], Coroutine[Any, Any, Any]]  # within the engine's life and deadline


def engine_args(kind: str) -> dict[str, Any]:
    """What vLLM has to know at its start."""
    if kind == "files":
        return {}
    return {"weight_transfer_config": WeightTransferConfig(backend=kind)}


def arguments(kind: str, table: Sequence[TensorRow], *, untie: bool) -> dict[str, Any]:
    """What the worker is given to receive these tensors."""
    return {
        "update_info": update_info(kind, table, untie=untie),
        "checksums": {row.name: row.checksum for row in table},
        "also": LM_HEAD if untie else None,
    }


async def join(llm: AsyncLLM, ask: Ask, meeting: Meeting) -> None:
    """Joins the learner's process group; requests wait for that long. Raises TransferError, nothing is touched."""
    request = WeightTransferInitRequest(init_info(meeting))
    try:
        await ask(llm.init_weight_transfer_engine(request), "join the weights' process group")
    except EngineError:
        raise
    except Exception as error:  # vLLM passes worker errors on as bare Exception
        raise TransferError(f"cannot join at {meeting.host}, port {meeting.port}: {_first_line(error)}") from error


async def receive(llm: AsyncLLM, ask: Ask, infos: dict[str, Any], receiving: Receiving) -> None:
    """Replaces the weights of an engine that stands still. Raises TransferError: it holds a mixture then."""
    try:
        await ask(llm.start_weight_update(), "begin a weight update")
        await receiving()
        await ask(llm.collective_rpc("receive_checked", kwargs=infos), "receive the weights")
        await ask(llm.finish_weight_update(), "finish a weight update")
    except EngineError:
        raise
    except Exception as error:  # of a worker, or of Redis
        await ask(llm.collective_rpc("drop_weight_update"), "drop a weight update")
        raise TransferError(_first_line(error), untouched=False) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
