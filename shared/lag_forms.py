"""How a lag may be given: a number, a distribution or a schedule, each with one text form. Pure.

8                        eight versions behind the newest
uniform:0:16             each of 0, 1, ..., 16 as likely as the others
choice:0,4*2,16          one of these, 4 twice as likely as each of the others
geometric:.25:16         0 with probability 1/4, else 1 with probability 1/4, ...; renormalized over 0..16
0@0,8@100,16@200         0 until 100 optimizer steps are published, 8 until 200, 16 from then on
linear:0@0,16@200        the same points with straight lines between them, rounded to whole versions
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

MAX_LAG = 1024  # versions
MAX_PARTS = 64  # values of a choice, points of a schedule
MAX_STEP = 10**9
MAX_WEIGHT = 10**6
EXAMPLES = "8, uniform:0:16, choice:0,4*2,16, geometric:.25:16, 0@0,8@100 or linear:0@0,16@200"


class Form(Protocol):
    """A way to give a lag. `str` of it is the text that `parse` reads back."""

    @property
    def largest(self) -> int:
        """The largest lag that it can ask for, versions."""

    @property
    def drawn(self) -> bool:
        """True for a distribution: it may be drawn from again."""

    @property
    def by_step(self) -> bool:
        """True where the lag changes with the optimizer steps."""

    def at(self, u: float, step: int) -> int:
        """The lag for a draw u in [0, 1) and so many optimizer steps."""

    def capped(self, most: int) -> Form:
        """The same with no lag above `most`, and none above what it asks for itself."""


@dataclass(frozen=True)
class Fixed:
    """Always the same lag."""

    lag: int
    drawn = False
    by_step = False

    @property
    def largest(self) -> int:  # noqa: D102 - of Form
        return self.lag

    def at(self, u: float, step: int) -> int:  # noqa: D102
        return self.lag

    def capped(self, most: int) -> Form:  # noqa: D102
        return Fixed(min(self.lag, most))

    def __str__(self) -> str:
        return str(self.lag)


@dataclass(frozen=True)
class Uniform:
    """Every whole number from low to high, both included."""

    low: int
    high: int
    drawn = True
    by_step = False

    @property
    def largest(self) -> int:  # noqa: D102
        return self.high

    def at(self, u: float, step: int) -> int:  # noqa: D102
        return self.low + math.floor(u * (self.high - self.low + 1))

    def capped(self, most: int) -> Form:  # noqa: D102
        return Uniform(min(self.low, most), min(self.high, most))

    def __str__(self) -> str:
        return f"uniform:{self.low}:{self.high}"


@dataclass(frozen=True)
class Choice:
    """One of several lags, with weights."""

    values: tuple[int, ...]
    weights: tuple[float, ...]
    drawn = True
    by_step = False

    @property
    def largest(self) -> int:  # noqa: D102
        return max(self.values)

    def at(self, u: float, step: int) -> int:  # noqa: D102
        sums = list(accumulate(self.weights))
        return next((v for v, s in zip(self.values, sums, strict=True) if u * sums[-1] < s), self.values[-1])

    def capped(self, most: int) -> Form:  # noqa: D102
        weights: dict[int, float] = {}
        for value, weight in zip(self.values, self.weights, strict=True):
            weights[min(value, most)] = weights.get(min(value, most), 0) + weight
        return Choice(tuple(weights), tuple(weights.values()))

    def __str__(self) -> str:
        parts = [f"{v}" if w == 1 else f"{v}*{w:g}" for v, w in zip(self.values, self.weights, strict=True)]
        return "choice:" + ",".join(parts)


@dataclass(frozen=True)
class Geometric:
    """P(lag) proportional to (1 - p)^lag, over 0..high."""

    p: float
    high: int
    drawn = True
    by_step = False

    @property
    def largest(self) -> int:  # noqa: D102
        return self.high

    def at(self, u: float, step: int) -> int:  # noqa: D102
        if self.p == 1:
            return 0
        stay = math.log1p(-self.p)
        whole = -math.expm1((self.high + 1) * stay)
        return min(self.high, math.floor(math.log1p(-u * whole) / stay))

    def capped(self, most: int) -> Form:  # noqa: D102
        return Geometric(self.p, min(self.high, most))

    def __str__(self) -> str:
        return f"geometric:{self.p:g}:{self.high}"


@dataclass(frozen=True)
class Schedule:
    """Lags at optimizer steps; the first step is 0."""

    points: tuple[tuple[int, int], ...]  # (step, lag), steps ascending
    linear: bool = False
    drawn = False
    by_step = True

    @property
    def largest(self) -> int:  # noqa: D102
        return max(lag for _, lag in self.points)

    def at(self, u: float, step: int) -> int:  # noqa: D102
        for (begin, lag), (end, following) in pairwise(self.points):
            if step < end:
                share = (step - begin) / (end - begin) if self.linear else 0
                return math.floor(lag + share * (following - lag) + 0.5)
        return self.points[-1][1]

    def capped(self, most: int) -> Form:  # noqa: D102 - a straight line between capped points is below the capped line
        return Schedule(tuple((step, min(lag, most)) for step, lag in self.points), self.linear)

    def __str__(self) -> str:
        return "linear:" * self.linear + ",".join(f"{lag}@{step}" for step, lag in self.points)


def parse(text: str) -> Form:
    """Reads the text form. Raises ValueError: what is wrong with it, and how it is written."""
    text = text.strip()
    name, separator, rest = text.partition(":")
    reader = _READERS.get(name) if separator else None
    if reader is not None:
        return reader(rest)
    if separator:
        raise ValueError(f"a lag is written as {EXAMPLES}")
    return _schedule(text) if "@" in text else Fixed(_lag(text))


def _uniform(rest: str) -> Form:
    low, high = (_lag(part) for part in _split(rest, ":", "uniform:LOW:HIGH", 2))
    if low > high:
        raise ValueError(f"uniform:LOW:HIGH has {low} above {high}")
    return Uniform(low, high)


def _choice(rest: str) -> Form:
    parts = _split(rest, ",", "choice:LAG,LAG*WEIGHT,...")
    pairs = [part.partition("*") for part in parts]
    values = tuple(_lag(value) for value, _, _ in pairs)
    weights = tuple(_number(weight, "a weight", 0, MAX_WEIGHT) if star else 1.0 for _, star, weight in pairs)
    if len(set(values)) < len(values):
        raise ValueError("choice: a lag is named twice; give it a weight, as in 4*2")
    if not sum(weights):
        raise ValueError("choice: every weight is 0")
    return Choice(values, weights)


def _geometric(rest: str) -> Form:
    p, high = _split(rest, ":", "geometric:P:HIGH", 2)
    probability = _number(p, "P", 0, 1)
    if not probability:
        raise ValueError("geometric:P:HIGH: P is above 0")
    return Geometric(probability, _lag(high))


def _schedule(rest: str, linear: bool = False) -> Form:
    pairs = [part.partition("@") for part in _split(rest, ",", "LAG@STEP,LAG@STEP,...")]
    points = tuple((_whole(step, "a step", MAX_STEP), _lag(lag)) for lag, _, step in pairs)
    if points[0][0] != 0:
        raise ValueError(f"a schedule begins at step 0, not {points[0][0]}: put {points[0][1]}@0 in front")
    if any(before >= after for (before, _), (after, _) in pairwise(points)):
        raise ValueError("the steps of a schedule ascend")
    return Schedule(points, linear)


_READERS: dict[str, Callable[[str], Form]] = {
    "uniform": _uniform,
    "choice": _choice,
    "geometric": _geometric,
    "linear": lambda rest: _schedule(rest, linear=True),
}


def _split(text: str, by: str, shape: str, exactly: int | None = None) -> list[str]:
    parts = text.split(by)
    if (exactly is not None and len(parts) != exactly) or len(parts) > MAX_PARTS:
        raise ValueError(f"write it as {shape}" + f", at most {MAX_PARTS} of them" * (exactly is None))
    return parts


def _lag(text: str) -> int:
    return _whole(text, "a lag", MAX_LAG)


def _whole(text: str, what: str, most: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise ValueError(f"{what} is a whole number from 0 to {most:,}; a setting is written as {EXAMPLES}")
    return int(text)


def _number(text: str, what: str, low: float, high: float) -> float:
    """To six digits, as it is written again."""
    try:
        value = float(f"{float(text):g}")
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{what} is a number from {low:,} to {high:,}")
    return value
