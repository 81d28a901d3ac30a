"""What is written down of optimizer steps: a row each, in the run folder and for the dashboard, and a few examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from learner.files import RunFiles, finite, plain
from learner.patience import Patience
from shared.control import ControlState
from shared.metrics import LearnerMetrics
from shared.records import StepRecord

Row = dict[str, Any]


class Book:
    """The steps of a batch, held until they are written down."""

    def __init__(
        self,
        files: RunFiles,
        control: ControlState,
        epoch: int,
        patience: Patience,
        metrics: LearnerMetrics,
        examples_bytes: int,
    ) -> None:
        self._files = files
        self._control = control
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
            self._add_history(row)
            self._add_examples(record.step, examples)
        self.records, self._examples = [], []

    def _add_history(self, row: Row) -> None:
        tries: list[int] = []

        def add_once() -> None:
            tries.append(1)
            rows = self._control.history(last=1) if len(tries) > 1 else []
            if rows[-1:] != [row]:  # an earlier try may have come through without its answer
                self._control.add_history(row, self._epoch)

        self._patience.tell("add to the history", add_once)

    def _add_examples(self, step: int, examples: Sequence[Row]) -> None:
        rows = [finite(example) for example in examples]
        if rows:
            self._patience.tell(
                "add examples", lambda: self._control.add_examples(step, rows, self._epoch, self._examples_bytes)
            )
