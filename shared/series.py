"""Numbers over time in Redis: every step for hours, minutes for days, hours for a month, within a budget of bytes.

    row ----> steps    one number a series and step           blocks of 128 steps
        `---> minutes  count, mean, least, largest of each    blocks of an hour
        `---> hours    the same                               blocks of a day

A block is a hash: series -> packed cells, the first cell being that of the block's first step, minute or hour, so that
a series over a month is some thirty short strings. A series is the name of a number (`token_ess`,
`by_staleness.token_ess`) and, where it is one of many, `|` and its label. Cells are written by `scripts.ADD_HISTORY`
(steps; the learner, fenced by its epoch) and `scripts.SAMPLE` (rollout servers; any control plane, once for each
stretch of time). The oldest blocks go first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgpack
import numpy as np
import numpy.typing as npt

from shared.redis_client import Client, translated

Tier = Literal["steps", "minutes", "hours"]
TIERS: tuple[Tier, ...] = ("steps", "minutes", "hours")
WIDTH: dict[Tier, int] = {"steps": 128, "minutes": 60, "hours": 24}  # cells of a block; as in shared/scripts/history.py
SECONDS: dict[Tier, int] = {"minutes": 60, "hours": 3600}
KEPT: dict[Tier, int] = {"minutes": 7 * 1440, "hours": 30 * 24}  # cells at most, where the budget reaches
SHARES = {"rows": 0.35, "steps": 0.15, "minutes": 0.2, "hours": 0.1, "fleet_minutes": 0.12, "fleet_hours": 0.08}
"""Of control_plane.history_bytes."""
MAX_SERIES = 1024  # of one row
MAX_LABEL = 64  # characters
SKIPPED_FIELDS = ("prompt_indices",)

Floats = npt.NDArray[np.float64]
_CELL = np.dtype([("count", "<u4"), ("mean", "<f8"), ("low", "<f4"), ("high", "<f4")])
_STEP = np.dtype("<f8")


@dataclass(frozen=True)
class Cells:
    """One series over time: where there is anything, by the number of the step, minute or hour."""

    number: npt.NDArray[np.int64]
    count: Floats
    mean: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.number)


# -- writing ----------------------------------------------------------------------------------------
def flatten(row: Mapping[str, Any]) -> dict[str, float]:
    """Every finite number of a row by its series; texts are left out."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if name in SKIPPED_FIELDS:
            continue
        if isinstance(value, dict):
            found.update(_of_labels(name, value.items()))
        elif isinstance(value, list):
            found.update(_of_list(name, value))
        elif _is_number(value):
            found[name] = float(value)
    return dict(list(found.items())[:MAX_SERIES])


def once(values: Mapping[str, float]) -> bytes:
    """Packed cells of numbers that were seen once each."""
    return msgpack.packb([part for name, value in values.items() for part in (name, 1, value, value, value)])


def merged(rows: Iterable[Mapping[str, float]]) -> bytes:
    """Packed cells of numbers that were seen in several rows."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, []).append(value)
    cells = ((name, len(v), math.fsum(v) / len(v), min(v), max(v)) for name, v in seen.items())
    return msgpack.packb([part for cell in cells for part in cell])


def _of_labels(name: str, parts: Iterable[tuple[Any, Any]]) -> dict[str, float]:
    """`lags`: numbers by label; `by_arm`: several of each."""
    found: dict[str, float] = {}
    for label, part in parts:
        inner = part.items() if isinstance(part, dict) else (("", part),)
        for key, value in inner:
            if _is_number(value):
                found[f"{name}{'.' * bool(key)}{key}|{str(label)[:MAX_LABEL]}"] = float(value)
    return found


def _of_list(name: str, parts: Sequence[Any]) -> dict[str, float]:
    """Counts of bins by their position; what shadows found by their objective."""
    if all(isinstance(part, dict) and "objective" in part for part in parts):
        return _of_labels(name, ((part["objective"], part) for part in parts))
    return _of_labels(name, enumerate(parts))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- reading ----------------------------------------------------------------------------------------
class Series:
    """The numbers under one set of books, `keys.series` or `keys.fleet`."""

    def __init__(self, client: Client, books: str) -> None:
        self._client = client
        self._key = books
        with translated():
            self._books = client.hgetall(books)

    def blocks(self, tier: Tier) -> list[int]:
        """Numbers of the blocks that are kept, ascending."""
        prefix = f"{tier}:".encode()
        return sorted(int(name[len(prefix) :]) for name in self._books if name.startswith(prefix))

    def is_whole(self, tier: Tier) -> bool:
        """True while nothing of a tier was dropped."""
        return f"gone:{tier}".encode() not in self._books

    def begins(self, tier: Tier) -> float:
        """Unix seconds of the oldest that a tier has; infinite where it has nothing."""
        found = self.blocks(tier)
        if not found:
            return math.inf
        if tier != "steps":
            return float(found[0] * WIDTH[tier] * SECONDS[tier])
        first = self.read("steps", ["at"], found[:1])["at"].mean
        return float(first[0]) if len(first) else math.inf

    def names(self, tier: Tier, blocks: Sequence[int]) -> set[str]:
        """Every series of these blocks."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for block in blocks:
                pipe.hkeys(self._block(tier, block))
            return {name.decode(errors="replace") for names in pipe.execute() for name in names}

    def read(self, tier: Tier, names: Sequence[str], blocks: Sequence[int]) -> dict[str, Cells]:
        """These series over these blocks."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for block in blocks:
                pipe.hmget(self._block(tier, block), names)
            found = pipe.execute() if names else []
        return {name: _cells(tier, blocks, [held[i] for held in found]) for i, name in enumerate(names)}

    def _block(self, tier: Tier, number: int) -> str:
        return f"{self._key}:{tier}:{number}"


def _cells(tier: Tier, blocks: Sequence[int], held: Sequence[bytes | None]) -> Cells:
    """What the blocks hold of one series, in one."""
    kind = _STEP if tier == "steps" else _CELL
    parts = [np.frombuffer(raw, kind, len(raw) // kind.itemsize) for raw in held if raw]
    starts = [block * WIDTH[tier] for block, raw in zip(blocks, held, strict=True) if raw]
    number = np.concatenate(
        [np.arange(start, start + len(part)) for start, part in zip(starts, parts, strict=True)] or [np.empty(0)]
    ).astype(np.int64)
    whole = np.concatenate(parts or [np.empty(0, kind)])
    if tier == "steps":
        there = np.isfinite(whole)
        mean = whole[there]
        return Cells(number[there], np.ones(len(mean)), mean, mean, mean)
    there = whole["count"] > 0
    count, mean, low, high = (whole[name][there].astype(np.float64) for name in ("count", "mean", "low", "high"))
    return Cells(number[there], count, mean, low, high)


def downsampled(cells: Cells, width: int) -> Cells:
    """The same over stretches of `width` numbers that begin at its multiples."""
    if width == 1 or not len(cells):
        return cells
    bins, first = np.unique(cells.number // width, return_index=True)
    count = np.add.reduceat(cells.count, first)
    mean = np.add.reduceat(cells.count * cells.mean, first) / count
    low, high = np.minimum.reduceat(cells.low, first), np.maximum.reduceat(cells.high, first)
    return Cells(bins * width, count, mean, low, high)
