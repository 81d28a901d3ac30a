"""What is written down of optimizer steps: a row each, in the run folder and for the dashboard, and a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from learner.files import RunFiles, finite, plain
from learner.patience import Patience
from shared.control import ControlState
from shared.history import History
from shared.metrics import LearnerMetrics
from shared.records import StepRecord

Row = dict[str, Any]


class Book:
    """The steps of a batch, held until they are written down."""

    def __init__(
        self,
        files: RunFiles,
        control: ControlState,
        history: History,
        epoch: int,
        patience: Patience,
        metrics: LearnerMetrics,
        examples_bytes: int,
    ) -> None:
        self._files = files
        self._control = control
        self._history = history
        self._epoch = epoch
        self._patience = patience
        self._metrics = metrics
        self._examples_bytes = examples_bytes
        self._examples: list[Sequence[Row]] = []  # of each record
        self.records: list[StepRecord] = []  # not yet written down

    def add(self, record: StepRecord, examples: Sequence[Row]) -> None:
        """A step was taken, or skipped."""
        self.records.append(record)
        self._examples.append(examples)

    def published(self, seconds: float) -> None:
        """Publishing what the newest step led to took so long."""
        if self.records:
            self.records[-1] = replace(self.records[-1], publish_s=seconds)

    def write(self) -> None:
        """Writes everything down. Raises FencedError."""
        for record, examples in zip(self.records, self._examples, strict=True):
            row = plain(record)
            self._metrics.observe(record)
            self._files.history.append(row)
            self._patience.tell("add to the history", partial(self._history.add, row, self._epoch))
            self._add_examples(record.step, examples)
        self.records, self._examples = [], []

    def _add_examples(self, step: int, examples: Sequence[Row]) -> None:
        rows = [finite(example) for example in examples]
        if rows:
            self._patience.tell(
                "add examples", lambda: self._control.add_examples(step, rows, self._epoch, self._examples_bytes)
            )
