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

TAKEN_OUT = "its entry was taken out of the stream"
FORGOTTEN = "redis forgot it"


class Losses:
    """The groups that are known to be lost."""

    def __init__(self, file: LineFile, metrics: LearnerMetrics, log: Logger) -> None:
        self._file = file
        self._metrics = metrics
        self._log = log
        self.count = len(file.rows())

    def name(self, indices: Sequence[int], cause: str) -> None:
        """Writes them down, durably, and says so."""
        if not indices:
            return
        for index in indices:
            self._file.append({"prompt_index": index, "cause": cause, "at": time.time()})
        self._file.sync()
        self.count += len(indices)
        self._metrics.groups_lost.labels(cause).inc(len(indices))
        self._log.error("acknowledged groups are lost", groups=len(indices), cause=cause, prompt_indices=list(indices))


def said(indices: Sequence[int], cause: str) -> str:
    """One line for the run's events."""
    shown = ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")
    return f"{len(indices)} acknowledged groups are lost, {cause}: prompts {shown}; they are drawn again"
