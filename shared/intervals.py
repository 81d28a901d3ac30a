"""Sets of integers as sorted closed intervals: the ledger of finished prompt indices."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A set of non-negative integers, kept as disjoint, non-adjacent [first, last] pairs.

    Adding in nearly ascending order, as a ledger is filled, costs O(log n) and the number of pairs stays
    at the number of holes.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            if first < 0 or last < first or (self._lasts and first <= self._lasts[-1] + 1):
                raise ValueError(f"[{first}, {last}] does not follow {self._lasts[-1:]} as a disjoint interval")
            self._firsts.append(first)
            self._lasts.append(last)

    def add(self, value: int) -> bool:
        """Adds a value; False if it was in the set already."""
        if value < 0:
            raise ValueError(f"{value} is negative")
        i = bisect_right(self._firsts, value)
        if i and value <= self._lasts[i - 1]:
            return False
        joins_left = i > 0 and self._lasts[i - 1] == value - 1
        joins_right = i < len(self._firsts) and self._firsts[i] == value + 1
        if joins_left and joins_right:
            self._lasts[i - 1] = self._lasts.pop(i)
            del self._firsts[i]
        elif joins_left:
            self._lasts[i - 1] = value
        elif joins_right:
            self._firsts[i] = value
        else:
            self._firsts.insert(i, value)
            self._lasts.insert(i, value)
        return True

    def __contains__(self, value: int) -> bool:
        i = bisect_right(self._firsts, value)
        return i > 0 and value <= self._lasts[i - 1]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.pairs())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and list(self.pairs()) == list(other.pairs())

    def __repr__(self) -> str:
        return f"Intervals({list(self.pairs())})"

    def without(self, values: Iterable[int]) -> Intervals:
        """A copy that lacks these values."""
        gone = sorted(set(values))
        pairs = []
        for first, last in self.pairs():
            for value in gone[bisect_left(gone, first) : bisect_right(gone, last)]:
                if value > first:
                    pairs.append((first, value - 1))
                first = value + 1  # noqa: PLW2901  # the rest of this interval
            if first <= last:
                pairs.append((first, last))
        return Intervals(pairs)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """The [first, last] pairs, ascending."""
        return zip(self._firsts, self._lasts, strict=True)
