"""Acknowledged groups that Redis lost: each is named once, by its prompt index, in lost.jsonl, and never taken back.

Two witnesses. Opening the stream finds indices that were appended and are nowhere (somebody trimmed or deleted
entries); rollout servers claim what was acknowledged to them and a Redis that fell back into the past has forgotten.
A lost group's prompt is drawn again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from learner.files import LineFile
from shared.log import Logger
from shared.metrics import LearnerMetrics
from shared.stream import FORGOTTEN, TAKEN_OUT, Claim

SHOWN = 20
_CAUSES = {FORGOTTEN: "redis forgot them", TAKEN_OUT: "somebody took their entries out of the stream"}


class Losses:
    """The groups that are known to be lost."""

    def __init__(self, file: LineFile, metrics: LearnerMetrics, log: Logger) -> None:
        self._file = file
        self._metrics = metrics
        self._log = log
        self._claims = {row["claim"] for row in file.rows()}  # that were written down, and perhaps not settled

    @property
    def count(self) -> int:
        """Every loss since the run began."""
        return len(self._claims)

    def name(self, claims: Sequence[Claim]) -> list[str]:
        """Writes down what is new, durably, and says so. Returns a line for each cause."""
        new = [claim for claim in claims if claim.id not in self._claims]
        for claim in new:
            row = {"prompt_index": claim.prompt_index, "cause": claim.cause, "claim": claim.id, "at": time.time()}
            self._file.append(row)
            self._claims.add(claim.id)
            self._metrics.groups_lost.labels(claim.cause).inc()
        if new:
            self._file.sync()
        return [self._say(cause, [c.prompt_index for c in new if c.cause == cause]) for cause in {c.cause for c in new}]

    def _say(self, cause: str, indices: list[int]) -> str:
        self._log.error("acknowledged groups are lost", groups=len(indices), cause=cause, prompt_indices=indices)
        shown = ", ".join(map(str, indices[:SHOWN])) + (", ..." if len(indices) > SHOWN else "")
        return f"{len(indices)} acknowledged groups are lost, {_CAUSES[cause]}: prompts {shown}; they are drawn again"
