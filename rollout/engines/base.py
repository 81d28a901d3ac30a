"""The small interface behind which every generation engine stands."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shared.types import Completion, Float32Array, Int32Array, SamplingSettings


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

    async def load(self, folder: Path, policy_version: int) -> float:
        """Replace the weights while requests go on; returns the seconds that generation paused.

        A folder that cannot be served raises EngineError and changes nothing. A switch that fails
        half-way leaves the engine dead.
        """
        ...

    async def logprobs(self, token_ids: Int32Array) -> Float32Array:
        """Log-prob of tokens 1..T-1 given those before, temperature 1, from current weights: [T-1]."""
        ...

    async def stop(self) -> None:
        """End the engine and every process it started."""
        ...
