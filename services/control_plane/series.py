"""Numbers over time over HTTP: what there is, series of it, histograms."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Depends, FastAPI, Query
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from services import series
from services.control_plane.resources import LOOK, There
from services.control_plane.schemas import Answer
from services.series import HISTOGRAMS, Found, Line, TooManyError, Window
from shared.histogram import LOG_RATIO_EDGES
from shared.measures import MEASURES, Measure, measure
from shared.series import Floats, Tier

MAX_NAMES = 32
MAX_READS = 3  # at once, of series and histograms: each may hold tens of megabytes
DIGITS = {"steps": 12, "minutes": 7, "hours": 7}  # that a kept number has


class MeasureAnswer(Answer):
    """A number that `/v1/series` knows."""

    name: str
    unit: str
    """Empty for a plain number."""
    text: str
    """What it means; empty for one that says it itself."""
    kind: Literal["gauge", "share"]
    """A share lies in 0..1."""
    labels: list[str]
    """Of which there is one each: those of the last day. Empty: there is one alone, or none yet."""


class Measures(Answer):
    """What there is to see over time."""

    metrics: list[MeasureAnswer]


class Point(Answer):
    """A stretch of time, one step or more."""

    at: float
    """Unix seconds at which it begins."""
    step: int | None
    """The newest step in it."""
    mean: float
    min: float
    max: float
    count: int
    """Of steps, and of servers and samples, that it is over."""


class SeriesAnswer(Answer):
    """One series."""

    name: str
    label: str | None
    """Which of many: a staleness bucket, a server. Of `servers.*` null is all of them together."""
    tier: Tier
    points: list[Point]


class SeriesFound(Answer):
    """Series over one stretch of time. A stretch without a value has no point."""

    resolution_s: float
    """Seconds of a point."""
    tier: Tier
    """Where they were kept: every step, minutes or hours."""
    series: list[SeriesAnswer]


class Column(Answer):
    """A stretch of time in a histogram."""

    at: float
    step: int | None
    counts: list[float]
    """Tokens of each bin, over the whole stretch."""


class HistogramFound(Answer):
    """How tokens are spread, over time."""

    resolution_s: float
    tier: Tier
    edges: list[float] | None
    """Between the bins, the first and the last of which are open; null where they have names."""
    buckets: list[str] | None
    """Names of the bins: versions of staleness."""
    columns: list[Column]


Since = Annotated[float | None, Query(ge=0, le=1e11, description="Unix seconds; without it from the beginning.")]
Until = Annotated[float | None, Query(ge=0, le=1e11, description="Unix seconds; without it until now.")]
Names = Annotated[
    list[str],
    Query(
        alias="name", min_length=1, max_length=MAX_NAMES, description="Of `/v1/metrics`; may be given several times."
    ),
]
Label = Annotated[
    str | None,
    Query(max_length=64, description="Only this one of the names that have several; without it each of them."),
]
Points = Annotated[int, Query(ge=1, le=2000, description="Of each series at most; more are taken together.")]
EXAMPLE = {
    "resolution_s": 60.0,
    "tier": "minutes",
    "series": [
        {
            "name": "by_staleness.token_ess",
            "label": "3-4",
            "tier": "minutes",
            "points": [{"at": 1800000000.0, "step": 412, "mean": 0.981, "min": 0.964, "max": 0.993, "count": 24}],
        }
    ],
}


def described(model: type[Answer], example: Any) -> dict[str, Any]:
    """What the description says of an answer that is not built by its model, for speed."""
    content = {"application/json": {"example": example}}
    return LOOK | {"responses": LOOK["responses"] | {200: {"model": model, "content": content}}}


def add_series(app: FastAPI) -> None:
    """The routes."""
    turns = asyncio.Semaphore(MAX_READS)

    async def turn() -> AsyncIterator[None]:
        """Waits on the event loop, so that the worker threads stay with those who ask for less."""
        async with turns:
            yield

    in_turn = {"dependencies": [*LOOK["dependencies"], Depends(turn, scope="function")]}

    @app.get("/v1/metrics", tags=["series"], summary="What there is to see over time", **LOOK)
    def metrics(there: There) -> Measures:
        """Every name that `/v1/series` knows, with unit, meaning and the labels of the last day."""
        found = series.known_names(there.client, there.keys)
        return Measures(metrics=[_measure(name, *found[name]) for name in sorted(found)])

    @app.get("/v1/series", tags=["series"], summary="Numbers over time", **described(SeriesFound, EXAMPLE) | in_turn)
    def read(
        there: There,
        names: Names,
        since: Since = None,
        until: Until = None,
        points: Points = 300,
        label: Label = None,
    ) -> Response:
        """Means with least and largest, of the finest tier that reaches back to `since`: steps, minutes, hours."""
        for name in names:
            _check(name)
        window = Window(since, until, points)
        try:
            found = series.read(there.client, there.keys, list(dict.fromkeys(names)), label, window)
        except TooManyError as error:
            raise HTTPException(422, f"name: {error}") from None
        lines = [_line(line) for line in found.lines]
        return JSONResponse({"resolution_s": found.resolution_s, "tier": found.tier, "series": lines})

    @app.get("/v1/histograms", tags=["series"], summary="How tokens are spread, over time", **LOOK | in_turn)
    def histograms(
        there: There,
        name: Annotated[Literal["log_ratio", "staleness"], Query(description="Of the trained tokens.")],
        since: Since = None,
        until: Until = None,
        columns: Annotated[int, Query(ge=1, le=500, description="At most; more are taken together.")] = 120,
    ) -> HistogramFound:
        """One column of counts for each stretch of time; all columns have the same bins."""
        bins, found = series.read_histogram(there.client, there.keys, HISTOGRAMS[name], Window(since, until, columns))
        by_edges = name == "log_ratio"
        return HistogramFound(
            resolution_s=found.resolution_s,
            tier=found.tier,
            edges=list(LOG_RATIO_EDGES) if by_edges else None,
            buckets=None if by_edges else bins,
            columns=_columns(bins, found),
        )


def _measure(name: str, known: Measure, labels: list[str]) -> MeasureAnswer:
    kind: Literal["gauge", "share"] = "share" if known.unit == "share" else "gauge"
    return MeasureAnswer(name=name, unit=known.unit, text=known.text, kind=kind, labels=labels[: series.MAX_LABELS])


def _check(name: str) -> None:
    if measure(name) is not None:
        return
    near = difflib.get_close_matches(name, MEASURES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "/v1/metrics lists what there is"
    raise HTTPException(422, f"name: there is no series {name[:80]!r}; {hint}")


def _line(line: Line) -> dict[str, Any]:
    cells = line.cells
    n = DIGITS[line.tier]
    shown = (significant(cells.mean, 9), significant(cells.low, n), significant(cells.high, n), cells.count.astype(int))
    values = zip(line.at, line.step, *(part.tolist() for part in shown), strict=True)
    points = [
        {"at": at, "step": step, "mean": mean, "min": low, "max": high, "count": count}
        for at, step, mean, low, high, count in values
    ]
    return {"name": line.name, "label": line.label, "tier": line.tier, "points": points}


def significant(values: Floats, digits: int) -> Floats:
    """Without the digits that were not kept: an answer has tens of thousands of numbers."""
    size = np.abs(values)
    power = np.minimum(digits - 1 - np.floor(np.log10(np.where(size > 0, size, 1.0))), 300)
    scale = 10.0 ** np.abs(power)  # a whole power of ten, so that what is divided by it has few digits again
    return np.where(power >= 0, np.round(values * scale) / scale, np.round(values / scale) * scale)


def _columns(bins: list[str], found: Found) -> list[Column]:
    at: dict[float, Column] = {}
    for line in found.lines:
        for i, (begins, step) in enumerate(zip(line.at, line.step, strict=True)):
            column = at.setdefault(begins, Column(at=begins, step=step, counts=[0.0] * len(bins)))
            if line.label in bins:
                column.counts[bins.index(line.label)] = round(float(line.cells.count[i] * line.cells.mean[i]))
    return [at[begins] for begins in sorted(at)]
