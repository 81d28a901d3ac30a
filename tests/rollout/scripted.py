"""An engine that says what it is told to, for logic in which only its answers matter and not a model's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rollout.engines.base import TensorReport
from shared.types import Completion, FinishReason, Float32Array, Int32Array, SamplingSettings, VersionSpan


class Scripted:
    """Answers with its script, in order; notes the contexts and token budgets that it was given."""

    policy_version = 0
    failure = None

    def __init__(self, *script: Completion) -> None:
        self._script = list(script)
        self.asked: list[tuple[list[int], int, int]] = []

    async def generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        self.asked.append((prompt_ids.tolist(), n, sampling.max_tokens))
        return [self._script.pop(0) for _ in range(n)]

    async def start(self, folder: Path, policy_version: int) -> None: ...

    async def stage(self, folder: Path) -> None: ...

    async def check_tensors(self, folder: Path) -> TensorReport:
        return TensorReport()

    async def load(self, folder: Path, policy_version: int) -> float:
        return 0.0

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        return np.zeros(0, dtype=np.float32)

    async def stop(self) -> None: ...


def said(*tokens: int, version: int = 0, reason: FinishReason = "stop", logprob: float = -0.5) -> Completion:
    ids = np.asarray(tokens, dtype=np.int32)
    spans = (VersionSpan(version, 0, len(ids)),) if tokens else ()
    return Completion(ids, np.full(len(ids), logprob, dtype=np.float32), spans, reason)
