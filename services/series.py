"""Numbers over time, as they are asked for: which tier answers, and how it is made to fit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import TrustbatchError
from shared.histogram import LOG_RATIO_EDGES
from shared.keys import Keys
from shared.measures import MEASURES, SERVERS, Measure, measure
from shared.redis_client import Client
from shared.series import SECONDS, TIERS, WIDTH, Cells, Series, Tier, downsampled

MAX_LABELS = 64  # of one name, in one answer
MAX_POINTS = 50_000  # in one answer
MAX_LINES = 256  # names times labels that are read for one answer, of steps and of servers


class TooManyError(TrustbatchError):
    """More series at once than are read for one answer."""


@dataclass(frozen=True)
class Window:
    """A stretch of time in at most so many points."""

    since: float | None  # unix seconds; None: from the beginning
    until: float | None  # None: now
    points: int


@dataclass(frozen=True)
class Line:
    """One series of an answer."""

    name: str
    label: str | None
    tier: Tier
    cells: Cells
    at: Sequence[float]  # unix seconds at which each begins
    step: Sequence[int | None]


@dataclass(frozen=True)
class Found:
    """What a tier has of what was asked for."""

    tier: Tier
    resolution_s: float  # of one point, seconds
    lines: list[Line]


@dataclass(frozen=True)
class Histogram:
    """Counts that one name has by label."""

    name: str
    bins: int  # 0: as many as there are labels


HISTOGRAMS = {
    "log_ratio": Histogram("log_ratio_counts", len(LOG_RATIO_EDGES) + 1),
    "staleness": Histogram("by_staleness.tokens", 0),
}


def names_of(name: str, label: str | None, there: set[str]) -> list[str]:
    """The series of one name: that of a label, or those that there are."""
    if not _measure(name).labelled:
        return [name]
    if label is not None:
        return [f"{name}|{label}"]
    labelled = sorted(found for found in there if found.startswith(f"{name}|"))
    return ([name] if name in there else []) + labelled[:MAX_LABELS]


def read(client: Client, keys: Keys, names: Sequence[str], label: str | None, window: Window) -> Found:
    """The series of these names. Raises StreamError, and TooManyError before any of them is read."""
    of_rows = [name for name in names if not name.startswith(f"{SERVERS}.")]
    of_servers = [name for name in names if name.startswith(f"{SERVERS}.")]
    rows = _read(Series(client, keys.series), of_rows, label, window, TIERS) if of_rows else None
    if not of_servers:
        assert rows is not None
        return rows
    fleet = _read(Series(client, keys.fleet), of_servers, label, window, TIERS[1:])
    return Found(rows.tier, rows.resolution_s, rows.lines + fleet.lines) if rows else fleet


def tier_for(series: Series, since: float, tiers: Sequence[Tier]) -> Tier:
    """The finest tier that reaches back so far, or as far as anything was ever written."""
    for tier in tiers:
        if not series.is_empty and (series.is_whole(tier) or series.begins(tier) <= since):
            return tier
    return tiers[-1]


def _read(series: Series, names: Sequence[str], label: str | None, window: Window, tiers: Sequence[Tier]) -> Found:
    since = -math.inf if window.since is None else window.since
    until = time.time() if window.until is None else window.until
    tier = tier_for(series, since, tiers)
    if tier == "steps":
        series.open_rows()
    blocks = [b for b in series.blocks(tier) if tier == "steps" or _touches(b * WIDTH[tier], tier, since, until)]
    open_names = label is None and any(_measure(name).labelled for name in names)
    there = series.names(tier, blocks) if open_names else set[str]()
    wanted = [(name, found) for name in names for found in names_of(name, label, there)]
    if len(wanted) > MAX_LINES:
        raise TooManyError(f"{len(wanted)} series, by label, at once; at most {MAX_LINES}: fewer names, or a label")
    read = series.read(tier, ["at", "step", *(found for _, found in wanted)], blocks)
    at, step = read["at"], read["step"]
    inside = _inside(tier, at, since, until, {found: read[found] for _, found in wanted})
    points = max(1, min(window.points, MAX_POINTS // max(1, len(wanted))))
    width = max(1, math.ceil(_span(inside) / points))
    lines = [_line(tier, name, found, _cut(read[found], inside), width, at, step) for name, found in wanted]
    return Found(tier, _resolution(tier, width, at), [line for line in lines if len(line.cells)])


def _measure(name: str) -> Measure:
    return measure(name) or Measure(name, "", "", True)


def _touches(number: int, tier: Tier, since: float, until: float) -> bool:
    """True if a block that begins with this cell reaches into the window."""
    return (number + WIDTH[tier]) * SECONDS[tier] > since and number * SECONDS[tier] <= until


def _inside(tier: Tier, at: Cells, since: float, until: float, read: dict[str, Cells]) -> tuple[int, int]:
    """The numbers of the window's first and last cell."""
    if tier == "steps":
        there = at.number[(at.mean >= since) & (at.mean <= until)]
        return (int(there[0]), int(there[-1])) if len(there) else (0, -1)
    numbers = np.unique(np.concatenate([cells.number for cells in read.values()] or [np.empty(0, np.int64)]))
    first = numbers[(numbers + 1) * SECONDS[tier] > since]
    there = first[first * SECONDS[tier] <= until]
    return (int(there[0]), int(there[-1])) if len(there) else (0, -1)


def _span(inside: tuple[int, int]) -> int:
    return inside[1] - inside[0] + 1


def _cut(cells: Cells, inside: tuple[int, int]) -> Cells:
    kept = (cells.number >= inside[0]) & (cells.number <= inside[1])
    return Cells(cells.number[kept], cells.count[kept], cells.mean[kept], cells.low[kept], cells.high[kept])


def _line(tier: Tier, name: str, found: str, cells: Cells, width: int, at: Cells, step: Cells) -> Line:
    cells = downsampled(cells, width)
    label = found.partition("|")[2] if "|" in found else None
    times = _first_in(at, cells.number, width) if tier == "steps" else cells.number * float(SECONDS[tier])
    last = downsampled(step, width)
    steps = dict(zip(last.number.tolist(), last.high.tolist(), strict=True))
    numbers = [None if (n := steps.get(number)) is None else int(n) for number in cells.number.tolist()]
    return Line(name, label, tier, cells, times.tolist(), numbers)


def _first_in(at: Cells, numbers: np.ndarray, width: int) -> np.ndarray:
    """The time of the first step of each stretch."""
    return downsampled(at, width).low[np.searchsorted(downsampled(at, width).number, numbers)]


def _resolution(tier: Tier, width: int, at: Cells) -> float:
    """Seconds of a point; of steps, what they took on average."""
    if tier != "steps":
        return float(width * SECONDS[tier])
    spent = float(at.mean[-1] - at.mean[0]) / (len(at) - 1) if len(at) > 1 else 0.0
    return width * max(0.0, spent)


def read_histogram(client: Client, keys: Keys, of: Histogram, window: Window) -> tuple[list[str], Found]:
    """Counts by bin over time: the bins' labels in order, and one line of each that has any. Raises StreamError."""
    found = read(client, keys, [of.name], None, window)
    labels = {line.label or "" for line in found.lines}
    return [str(i) for i in range(of.bins)] if of.bins else sorted(labels, key=_first_number), found


def _first_number(bucket: str) -> tuple[int, str]:
    """`3-4` after `2`, before `5-8`."""
    digits = bucket.partition("-")[0].rstrip("+")
    return (int(digits), bucket) if digits.isdigit() else (2**62, bucket)


def known_names(client: Client, keys: Keys) -> dict[str, tuple[Measure, list[str]]]:
    """Every name that a series can be asked for, and the labels that its newest stretch of time has."""
    found: dict[str, tuple[Measure, list[str]]] = {name: (known, []) for name, known in MEASURES.items()}
    for series in (Series(client, keys.series), Series(client, keys.fleet)):
        for there in sorted(series.names("hours", series.blocks("hours")[-1:])):
            name, bar, label = there.partition("|")
            if (known := measure(name)) is not None:
                labels = found.setdefault(name, (known, []))[1]
                labels.extend([label] if bar else [])
    return found
