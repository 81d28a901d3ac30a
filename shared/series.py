"""Numbers over time in Redis: every step for hours, minutes for days, hours for a month, within a budget of bytes.

    row ----> steps    one number a series and step           blocks of 128 steps
        `---> minutes  count, mean, least, largest of each    blocks of an hour
        `---> hours    the same                               blocks of a day

What is open (the minute, the hour, the steps since the last whole block) is kept apart until it is whole, so that a
step writes its own numbers and no block of them. A block is a hash: series -> packed cells, the first cell being
that of the block's first step, minute or hour, so that a series over a month is some thirty short strings. A series
is the name of a number (`token_ess`, `by_staleness.token_ess`) and, where it is one of many, `|` and its label.
Cells are written by `scripts.ADD_HISTORY` (the learner, fenced by its epoch) and `scripts.SAMPLE` (rollout servers;
any control plane, once for each stretch of time). The oldest blocks go first.
"""

from __future__ import annotations

import math
import struct
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


def merged(rows: Iterable[Mapping[str, float]]) -> bytes:
    """Packed cells of numbers that were seen in several rows."""
    seen: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            seen.setdefault(name, []).append(value)
    cells = ((name, len(v), math.fsum(v) / len(v), min(v), max(v)) for name, v in seen.items())
    packed: bytes = msgpack.packb([part for cell in cells for part in cell])
    return packed


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
        self._open: list[tuple[int, dict[str, float]]] | None = None
        with translated():
            self._books = client.hgetall(books)

    def blocks(self, tier: Tier) -> list[int]:
        """Numbers of the blocks that are kept, ascending."""
        prefix = f"{tier}:".encode()
        return sorted(int(name[len(prefix) :]) for name in self._books if name.startswith(prefix))

    def bytes(self) -> dict[Tier, int]:
        """What each tier takes, by the books; what is open comes on top."""
        found = {tier: self._books.get(f"bytes:{tier}".encode()) for tier in TIERS}
        return {tier: int(size) for tier, size in found.items() if size is not None}

    @property
    def is_empty(self) -> bool:
        """True before the first row."""
        return not self._books

    def is_whole(self, tier: Tier) -> bool:
        """True while nothing of a tier was dropped."""
        return f"gone:{tier}".encode() not in self._books

    def begins(self, tier: Tier) -> float:
        """Unix seconds of the oldest that a tier has; infinite where it has nothing."""
        found = self.read(tier, ["at"], self.blocks(tier)[:1])["at"]
        if not len(found):
            return math.inf
        return float(found.mean[0] if tier == "steps" else found.number[0] * SECONDS[tier])

    def names(self, tier: Tier, blocks: Sequence[int]) -> set[str]:
        """Every series of these blocks, and of what is open."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for block in blocks:
                pipe.hkeys(self._block(tier, block))
            if tier != "steps":
                pipe.hkeys(self._block(tier, "open"))
            found = {name.decode(errors="replace") for names in pipe.execute() for name in names}
        return (found | {name for _, row in self.open_rows() for name in row} if tier == "steps" else found) - {""}

    def read(self, tier: Tier, names: Sequence[str], blocks: Sequence[int]) -> dict[str, Cells]:
        """These series over these blocks, and what is open: what is closed meanwhile is read twice and counts once."""
        opened = self.open_rows() if tier == "steps" else []
        keys = [self._block(tier, block) for block in blocks]
        with translated(), self._client.pipeline(transaction=False) as pipe:
            if tier != "steps":
                pipe.hmget(self._block(tier, "open"), ["", *names])
            for key in keys:
                pipe.hmget(key, names)
            found = pipe.execute()
        starts = [block * WIDTH[tier] for block in blocks]
        if tier != "steps":
            number, *cells = found.pop(0)
            starts.append(int(number or 0))
            found.append(cells)
        elif opened:
            starts.append(opened[0][0])
            found.append([_column(name, opened) for name in names])
        return {name: _cells(tier, starts, [held[i] for held in found]) for i, name in enumerate(names)}

    def open_rows(self) -> list[tuple[int, dict[str, float]]]:
        """The steps since the last whole block, by their numbers; the blocks are looked at again, after them."""
        if self._open is None:
            with translated():
                found = self._client.lrange(self._block("steps", "open"), 0, -1)
                self._books = self._client.hgetall(self._key)
            self._open = [(int(struct.unpack("<d", row[:8])[0]), msgpack.unpackb(row[8:])) for row in found]
        return self._open

    def _block(self, tier: Tier, number: int | Literal["open"]) -> str:
        return f"{self._key}:open:{tier}" if number == "open" else f"{self._key}:{tier}:{number}"


def _column(name: str, rows: Sequence[tuple[int, Mapping[str, float]]]) -> bytes:
    """A series of rows as a block would hold it."""
    return np.array([row.get(name, math.nan) for _, row in rows], _STEP).tobytes()


def _cells(tier: Tier, first: Sequence[int], held: Sequence[bytes | None]) -> Cells:
    """Cells of one series that begin at these numbers, in one; of two at the same number the first."""
    kind = _STEP if tier == "steps" else _CELL
    parts = [np.frombuffer(raw, kind, len(raw) // kind.itemsize) for raw in held if raw]
    starts = [start for start, raw in zip(first, held, strict=True) if raw]
    numbers = [np.arange(start, start + len(part)) for start, part in zip(starts, parts, strict=True)]
    number = np.concatenate(numbers or [np.empty(0, np.int64)])
    whole = np.concatenate(parts or [np.empty(0, kind)])
    there = np.isfinite(whole) if tier == "steps" else whole["count"] > 0
    number, at = np.unique(number[there], return_index=True)
    kept = whole[there][at]
    if tier == "steps":
        return Cells(number, np.ones(len(kept)), kept, kept, kept)
    return Cells(number, *(kept[name].astype(np.float64) for name in ("count", "mean", "low", "high")))


def downsampled(cells: Cells, width: int) -> Cells:
    """The same over stretches of `width` numbers that begin at its multiples."""
    if width == 1 or not len(cells):
        return cells
    bins, first = np.unique(cells.number // width, return_index=True)
    count = np.add.reduceat(cells.count, first)
    mean = np.add.reduceat(cells.count * cells.mean, first) / count
    low, high = np.minimum.reduceat(cells.low, first), np.maximum.reduceat(cells.high, first)
    return Cells(bins * width, count, mean, low, high)
