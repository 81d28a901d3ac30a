"""An engine that can be replaced by a fresh one of the same kind, behind the same interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from rollout.engines.base import Engine, TensorReport
from rollout.engines.transfer import Meeting, Receiving, ReceivingEngine
from shared.errors import EngineError, TransferError
from shared.tensor_table import TensorRow
from shared.types import Completion, Float32Array, Int32Array, SamplingSettings


class RenewableEngine:
    """Passes everything on to the engine of the moment."""

    def __init__(self, engine: Engine, build: Callable[[], Engine]) -> None:
        """`build` makes another engine, not yet started; it may take seconds."""
        self._engine = engine
        self._build = build
        self._renewing = False
        self._lost: str | None = None  # why there is no engine any more
        self._group: tuple[int, int] | None = None  # the process group that was joined last, by whichever engine
        self._left: tuple[int, int] | None = None  # the one that an engine was in that is no more

    @property
    def policy_version(self) -> int:
        """The version whose weights draw tokens now."""
        return self._engine.policy_version

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, or None; one that is being replaced is not."""
        return self._lost or (None if self._renewing else self._engine.failure)

    async def renew(self, folder: Path, policy_version: int) -> None:
        """Ends the engine and starts a fresh one with this folder. Raises EngineError, and is dead then."""
        self._renewing = True
        try:
            await self._engine.stop()
            self._left = self._group
            self._engine = await asyncio.to_thread(self._build)
            await self._engine.start(folder, policy_version)
        except EngineError as error:
            self._lost = str(error)
            raise
        finally:
            self._renewing = False

    async def start(self, folder: Path, policy_version: int) -> None:
        """Load the Hugging Face model folder and be ready to generate."""
        await self._engine.start(folder, policy_version)

    async def generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        """Draw n completions of the prompt [P]."""
        return await self._engine.generate(prompt_ids, n, sampling)

    async def stage(self, folder: Path) -> None:
        """Do all that `load` needs of this folder before generation has to stand still."""
        await self._engine.stage(folder)

    async def load(self, folder: Path, policy_version: int) -> float:
        """Replace the weights while requests go on; returns the seconds that generation paused."""
        return await self._engine.load(folder, policy_version)

    @property
    def receives(self) -> bool:
        """True where weights can be sent to it."""
        return isinstance(self._engine, ReceivingEngine)

    async def receive(
        self, meeting: Meeting, table: Sequence[TensorRow], policy_version: int, receiving: Receiving
    ) -> float:
        """Replace the weights by those that the learner sends. Raises TransferError: they did not arrive."""
        if not isinstance(self._engine, ReceivingEngine):
            raise TransferError("the engine takes weights from files only")
        if meeting.number == self._left:  # the learner would wait for an answer out of a group that nobody is in
            raise TransferError("the engine is a fresh one, which is not in the process group: form a new one")
        self._group = meeting.number
        return await self._engine.receive(meeting, table, policy_version, receiving)

    async def check_tensors(self, folder: Path) -> TensorReport:
        """Compare the weights that are loaded with the folder's."""
        return await self._engine.check_tensors(folder)

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        """Log-prob of tokens 1..T-1 given those before, temperature 1, from current weights: [T-1]."""
        return await self._engine.logprobs(token_ids)

    async def stop(self) -> None:
        """End the engine and every process it started."""
        await self._engine.stop()
