"""The run folder's line files: history, evaluations, dropped and lost groups. They hold the surviving lineage only.

What a restore abandons is moved to `<name>.abandoned.jsonl`, so every line of the file itself is true.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from shared.control import EvaluationResult
from shared.errors import StoreError
from shared.records import Dropped, StepRecord
from shared.store import write_durably


def plain(record: StepRecord | Dropped | EvaluationResult) -> dict[str, Any]:
    """A record as JSON can hold it: numbers that are not finite become null."""
    row: dict[str, Any] = finite(asdict(record))
    return row


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LineFile:
    """A file of one JSON object a line, opened once.

    A learner that begins puts a new file in the place of each (`take_over`): what a learner that was thought dead
    still writes goes to the file that it had opened, which has no name any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._opened()

    def append(self, row: dict[str, Any]) -> None:
        """Adds a line; it survives the end of the process, and a power loss once `sync` returned."""
        line = (json.dumps(row) + "\n").encode()
        try:
            written = self._file.write(line)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error}") from error
        if written != len(line):
            raise StoreError(f"cannot write {self.path}: only {written} of {len(line)} bytes: the disk is full")

    def sync(self) -> None:
        """Makes the lines durable."""
        os.fsync(self._file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """The whole lines."""
        return [row for _, row in self._lines() if row is not None]

    def take_over(self, survives: Callable[[dict[str, Any]], bool]) -> int:
        """Moves lines that do not survive, and torn ones, to the abandoned file. Returns how many."""
        lines = self._lines()
        gone = [text for text, row in lines if row is None or not survives(row)]
        if gone:
            with self.path.with_suffix(".abandoned.jsonl").open("a") as file:
                file.write("".join(text + "\n" for text in gone))
                file.flush()
                os.fsync(file.fileno())
        kept = [text + "\n" for text, row in lines if row is not None and survives(row)]
        write_durably(self.path, "".join(kept).encode())
        self._file.close()
        self._file = self._opened()
        return len(gone)

    def _opened(self) -> FileIO:
        try:
            return self.path.open("ab", buffering=0)  # a line is one write: torn by a full disk, never by a buffer
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error}") from error

    def _lines(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Every line's text and, unless it is torn, its object."""
        if not self.path.exists():
            return []
        return [(text, _parse(text)) for text in self.path.read_text(errors="replace").splitlines()]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class RunFiles:
    """The line files of one run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.history = LineFile(folder / "history.jsonl")
        self.evaluations = LineFile(folder / "evaluations.jsonl")
        self.dropped = LineFile(folder / "dropped.jsonl")
        self.lost = LineFile(folder / "lost.jsonl")

    def sync(self) -> None:
        """Makes every line durable: a checkpoint must not know of a step that the history lacks."""
        for file in (self.history, self.evaluations, self.dropped, self.lost):
            file.sync()
