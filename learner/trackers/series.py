"""A row of the history as numbers by name: the fields that the table of metrics knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from learner.trackers.base import Point
from shared.metrics.table import PARTS, STEP

_UNUSUAL = re.compile(r"[^\w\-. ]", re.ASCII)  # what some tracker refuses in a name


def point_of(row: Mapping[str, Any]) -> Point:
    """The numbers of a step; of its parts as `by_staleness.token_ess/3-4`. What is not known is left out."""
    return Point(int(row["step"]), float(row["at"]), dict(_values(row)))


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric in STEP:
        if metric.field != "step" and row.get(metric.field) is not None:
            yield metric.field, float(row[metric.field])
    for metric in PARTS:
        part, _, number = metric.field.partition(".")
        for label, values in _labelled(row.get(part) or {}):
            if values.get(number) is not None:
                yield f"{metric.field}/{_UNUSUAL.sub('_', label)}", float(values[number])


def _labelled(parts: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(parts, list):
        return [(str(shadow["objective"]), shadow) for shadow in parts]
    return list(parts.items())
