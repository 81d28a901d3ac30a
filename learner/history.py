"""What is written down of every step: a line of history.jsonl, a row in Redis, metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from learner.files import plain
from learner.parts import Parts
from shared.records import StepRecord


def write_down(records: Iterable[StepRecord], parts: Parts) -> None:
    """Each step, in order. Raises FencedError where the run is another learner's."""
    for record in records:
        row = plain(record)
        parts.metrics.observe(record)
        parts.files.history.append(row)
        _add_row(row, parts)


def _add_row(row: dict[str, Any], parts: Parts) -> None:
    tries: list[int] = []

    def add_once() -> None:
        tries.append(1)
        rows = parts.control.history(last=1) if len(tries) > 1 else []
        if rows[-1:] != [row]:  # an earlier try may have come through without its answer
            parts.control.add_history(row, parts.epoch)

    parts.patience.tell("add to the history", add_once)
