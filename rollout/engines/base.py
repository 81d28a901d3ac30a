"""The small interface behind which every generation engine stands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.types import Completion, Float32Array, Int32Array, SamplingSettings

CHECK_BYTES = 64 * 2**20  # of tensors compared in one piece; requests are served between two of them


@dataclass(frozen=True, slots=True)
class TensorReport:
    """What became of comparing the tensors that an engine holds with those of a version's files."""

    wrong: tuple[str, ...] = ()  # names in the engine whose values are not the file's
    unchecked: tuple[str, ...] = ()  # of the engine, kept in a form that cannot be compared, or in no file
    checked: int = 0  # tensors that are as published, in the engine's precision
    checked_bytes: int = 0

    def __add__(self, other: TensorReport) -> TensorReport:
        """Both together: pieces of one engine, or ranks of it."""
        return TensorReport(
            self.wrong + other.wrong,
            self.unchecked + other.unchecked,
            self.checked + other.checked,
            self.checked_bytes + other.checked_bytes,
        )


class Engine(Protocol):
    """Tokens in, tokens out, weights replaced between and during requests.

    One event loop drives an engine; `generate` may be called many times at once. All methods raise
    `EngineError` when the engine is dead or refuses.
    """

    @property
    def policy_version(self) -> int:
        """The version whose weights draw tokens now."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the engine is dead, or None. An `EngineError` of a living engine concerns one request."""
        ...

    async def start(self, folder: Path, policy_version: int) -> None:
        """Load the Hugging Face model folder and be ready to generate."""
        ...

    async def generate(self, prompt_ids: Int32Array, n: int, sampling: SamplingSettings) -> list[Completion]:
        """Draw n completions of the prompt [P]; their tokens carry the versions that drew them.

        Temperature 0 takes the most likely token; its log-probs are then those of temperature 1.
        """
        ...

    async def stage(self, folder: Path) -> None:
        """Do all that `load` needs of this folder before generation has to stand still. `load` without it does both.

        A folder that cannot be served raises EngineError; nothing that is served changes.
        """
        ...

    async def load(self, folder: Path, policy_version: int) -> float:
        """Replace the weights while requests go on; returns the seconds that generation paused.

        A folder that cannot be served raises EngineError and changes nothing. A switch that fails
        half-way leaves the engine dead.
        """
        ...

    async def check_tensors(self, folder: Path) -> TensorReport:
        """Compare the weights that are loaded, bit by bit, with the folder's, rounded to the engine's precision."""
        ...

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        """Log-prob of tokens 1..T-1 given those before, temperature 1, from current weights: [T-1]."""
        ...

    async def stop(self) -> None:
        """End the engine and every process it started."""
        ...
