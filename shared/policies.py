"""Admission policies: how much rollout servers may ask for, which groups go into a batch, which are too stale for one.

    server: LEASE within the credit ---> [stream] ---> window of the learner ---> evict ---> select ---> batch
                     ^                                                                                     |
                     `------------------- admit, announced with every version <---- token ESS <------------'

Three functions, one of each table, make a policy; `admission.admit`, `.select` and `.evict` name them, their keyword
arguments are the knobs. To add one: a function of that signature here or in your own module, each knob written
`name: Annotated[int, Field(ge=..., le=...)] = default`, its line in the table, a test. What no policy can change:
`max_staleness` and the byte credit bound what is asked for, a group that is not selected stays, one that is evicted is
counted by the word that `evict` gives as the reason.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

TOO_STALE = "too_stale"
WINDOWLESS = "oldest"  # takes what comes: needs no choice


@dataclass(frozen=True)
class Trust:
    """What admission may depend on, when a version is announced."""

    most: int  # max_staleness + 1: versions of credit at most
    credit: int  # versions of credit until now
    token_ess: float | None  # smallest of the steps since the version before; None where there were none, NaN as it is


@dataclass(frozen=True)
class Allowance:
    """How much may be asked for until the next version is announced."""

    versions: int  # of credit, each of groups_per_publish groups; at least 1, or nobody would go on
    in_order: bool = False  # no group may be overtaken so often that it comes too late


@dataclass(frozen=True)
class Waiting:
    """A group that waits to be trained on."""

    staleness: int  # versions, of its oldest token, now
    lag: int  # versions that were asked for


Admit = Callable[[Trust], Allowance]
Select = Callable[[Sequence[Waiting], int], list[int]]
Evict = Callable[[Waiting, int], str]


@dataclass(frozen=True)
class AdmissionPolicy:
    """The protocol: three questions, each a pure function."""

    admit: Admit  # how much credit is there now?
    select: Select  # (waiting in order of arrival, how many) -> positions of those that go into the batch
    evict: Evict  # (group, max_staleness) -> why it is dropped, '' where it is not
    chooses: bool  # `select` looks at more groups than a batch has


# -- admit ------------------------------------------------------------------------------------------
def credit(run: Trust) -> Allowance:
    """All credit, counted: a slow group holds nobody up, and is too stale when too many others have passed it."""
    return Allowance(run.most)


def in_order(run: Trust) -> Allowance:
    """All credit, and no group may be passed so often: a slow one holds the others up, and none comes too late."""
    return Allowance(run.most, in_order=True)


def ess(run: Trust, *, target: Annotated[float, Field(gt=0, lt=1)] = 0.9, in_order: bool = False) -> Allowance:
    """As much credit as the data bear: halved at a token ESS below target or NaN, else a version more."""
    if run.token_ess is None:
        return Allowance(run.credit, in_order)
    trusted = run.token_ess >= target
    return Allowance(min(run.most, run.credit + 1) if trusted else max(1, run.credit // 2), in_order)


# -- select -----------------------------------------------------------------------------------------
def oldest(waiting: Sequence[Waiting], count: int) -> list[int]:
    """In order of arrival."""
    return list(range(len(waiting)))[:count]


def stalest(waiting: Sequence[Waiting], count: int) -> list[int]:
    """The stalest, which have the least time left; of equally stale ones those that came first."""
    order = sorted(range(len(waiting)), key=lambda i: (waiting[i].lag - waiting[i].staleness, i))
    return sorted(order[:count])


def newest(waiting: Sequence[Waiting], count: int) -> list[int]:
    """The least stale; of equally stale ones those that came last. What is left ages, and is evicted in the end."""
    order = sorted(range(len(waiting)), key=lambda i: (waiting[i].staleness - waiting[i].lag, -i))
    return sorted(order[:count])


def mixed(
    waiting: Sequence[Waiting], count: int, *, newest_share: Annotated[float, Field(ge=0, le=1)] = 0.5
) -> list[int]:
    """A share of the newest, the rest in order of arrival: fresh tokens in every batch, and nothing waits for ever."""
    fresh = set(newest(waiting, min(count, round(newest_share * count))))
    rest = [i for i in range(len(waiting)) if i not in fresh]
    return sorted([*fresh, *rest[: count - len(fresh)]])


# -- evict ------------------------------------------------------------------------------------------
def too_stale(group: Waiting, max_staleness: int, *, slack: Annotated[int, Field(ge=0, le=4096)] = 0) -> str:
    """What is staler than its lag + max_staleness + slack."""
    return TOO_STALE if group.staleness > group.lag + max_staleness + slack else ""


def keep(group: Waiting, max_staleness: int) -> str:
    """Nothing: however stale, the objective decides by its ratios how far to trust it."""
    return ""


ADMIT: dict[str, Callable[..., Allowance]] = {"credit": credit, "in_order": in_order, "ess": ess}
SELECT: dict[str, Callable[..., list[int]]] = {"oldest": oldest, "stalest": stalest, "newest": newest, "mixed": mixed}
EVICT: dict[str, Callable[..., str]] = {"too_stale": too_stale, "keep": keep}
TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {"admit": ADMIT, "select": SELECT, "evict": EVICT}


def chosen(question: str, name: str, knobs: Mapping[str, Any]) -> Callable[..., Any]:
    """The named answer to a question (a key of TABLES), with its knobs set.

    Raises:
        ValueError: no such policy or knob, or a value outside its bounds; says what is allowed.

    """
    table = TABLES[question]
    if name not in table:
        raise ValueError(f"admission.{question} {name!r} is not known; known: {', '.join(table)}")
    function = table[name]
    hints = get_type_hints(function, include_extras=True)
    known = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if unknown := [knob for knob in knobs if knob not in known]:
        has = ", ".join(known) or "none"
        raise ValueError(f"admission.{question} {name!r} has no knob {unknown[0]!r}; it has: {has}")
    fields: dict[str, Any] = {knob: (hints[knob], default) for knob, default in known.items()}
    model = create_model("Knobs", __config__=ConfigDict(allow_inf_nan=False), **fields)
    try:
        return functools.partial(function, **model(**knobs).model_dump())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f"admission.{question} {name!r}: {first['loc'][0]}"
        raise ValueError(f"{where}: {first['msg']}, not {first['input']!r}") from None


def build(
    admit: tuple[str, Mapping[str, Any]], select: tuple[str, Mapping[str, Any]], evict: tuple[str, Mapping[str, Any]]
) -> AdmissionPolicy:
    """A policy of three (name, knobs). Raises ValueError as `chosen` does."""
    return AdmissionPolicy(
        chosen("admit", *admit), chosen("select", *select), chosen("evict", *evict), chooses=select[0] != WINDOWLESS
    )
