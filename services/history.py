"""A run's history from its folder: the surviving lineage of steps, evaluations and dropped groups."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """What a run folder tells about its run."""

    rows: list[Row]  # StepRecords of the surviving lineage, by step
    abandoned: int  # records of optimizer steps that a restored checkpoint took back
    evaluations: list[Row]  # EvaluationResults, by policy_version
    dropped: list[Row]  # Dropped groups, one for each
    lost: list[Row]  # acknowledged groups that Redis lost, each time that it lost one
    torn: int  # lines that could not be read (a killed process's last ones)


def read_history(folder: Path) -> History:
    """Reads history.jsonl, what was taken out of it, evaluations, dropped and lost groups; missing is empty."""
    rows, torn_rows = read_lines(folder / "history.jsonl")
    taken_back, torn_taken_back = read_lines(folder / "history.abandoned.jsonl")
    evaluations, torn_evaluations = read_lines(folder / "evaluations.jsonl")
    dropped, torn_dropped = read_lines(folder / "dropped.jsonl")
    lost, torn_lost = read_lines(folder / "lost.jsonl")
    lineage = surviving(rows)
    by_version = {row["policy_version"]: row for row in evaluations}
    by_index = {
        row["prompt_index"] if row["prompt_index"] >= 0 else f"unknown {i}": row for i, row in enumerate(dropped)
    }
    return History(
        rows=lineage,
        abandoned=len(rows) - len(lineage) + sum(1 for row in taken_back if not row.get("skipped")),
        evaluations=[by_version[version] for version in sorted(by_version)],
        dropped=list(by_index.values()),
        lost=lost,
        torn=torn_rows + torn_taken_back + torn_evaluations + torn_dropped + torn_lost,
    )


def read_lines(path: Path) -> tuple[list[Row], int]:
    """The JSON objects of a file, one a line, and how many lines could not be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    rows, torn = [], 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            torn += 1
    return rows, torn


def surviving(rows: Iterable[Row]) -> list[Row]:
    """The lineage that counts: what came after a restored checkpoint is replaced by what came after the restore."""
    lineage: list[Row] = []
    for row in rows:
        extend(lineage, row)
    return lineage


def extend(lineage: list[Row], row: Row) -> None:
    """Appends a row; steps that it repeats were taken back by a restore and are removed.

    A batch that was skipped took no step, so its number may be that of the step before it.
    """
    while lineage and (
        lineage[-1]["step"] > row["step"] or (lineage[-1]["step"] == row["step"] and not _apart(lineage, row))
    ):
        lineage.pop()
    lineage.append(row)


def applied_counts(rows: Sequence[Row]) -> Counter[int]:
    """How often each prompt index was applied, over the rows given."""
    return Counter(index for row in rows if not row.get("skipped") for index in row["prompt_indices"])


def _apart(lineage: Sequence[Row], row: Row) -> bool:
    return bool(row.get("skipped") or lineage[-1].get("skipped"))
