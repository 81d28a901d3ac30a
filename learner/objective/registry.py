"""Objectives by name. What an objective needs and which knobs it has is read from its function, written once.

To add one: a file with a function `name(step: Step, *, knob: Annotated[float, Bounds(...)] = default) -> TokenLoss`,
a test file, and its line in `OBJECTIVES`. Every objective also takes the knobs of `regularized`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from learner.objective.bapo import bapo
from learner.objective.chord import chord
from learner.objective.cispo import cispo
from learner.objective.core import Bounds, Step, TokenLoss, needs_of
from learner.objective.dapo import dapo
from learner.objective.decoupled_ppo import decoupled_ppo
from learner.objective.grpo import grpo
from learner.objective.gspo import gspo
from learner.objective.m2po import m2po
from learner.objective.minirl import minirl
from learner.objective.minpro import minpro
from learner.objective.opmd import asymre, kimi_pmd, opmd
from learner.objective.p3o import p3o
from learner.objective.p4o import p4o
from learner.objective.regularization import regularized
from learner.objective.reinforce import reinforce
from learner.objective.remix import remix
from learner.objective.sapo import sapo
from learner.objective.topr import topr
from learner.objective.truncated_is import truncated_is
from learner.objective.vcpo import vcpo

ObjectiveFunction = Callable[..., TokenLoss]

OBJECTIVES: dict[str, ObjectiveFunction] = {
    "p3o": p3o,
    "reinforce": reinforce,
    "grpo": grpo,
    "dapo": dapo,
    "decoupled_ppo": decoupled_ppo,
    "truncated_is": truncated_is,
    "cispo": cispo,
    "gspo": gspo,
    "topr": topr,
    "sapo": sapo,
    "minpro": minpro,
    "bapo": bapo,
    "m2po": m2po,
    "vcpo": vcpo,
    "opmd": opmd,
    "asymre": asymre,
    "kimi_pmd": kimi_pmd,
    "minirl": minirl,
    "chord": chord,
    "p4o": p4o,
    "remix": remix,
}

ALIASES: dict[str, str] = {"aipo": "truncated_is"}


@dataclass(frozen=True)
class Knob:
    """One keyword argument of an objective."""

    name: str
    default: float | int | bool | str
    kind: type
    bounds: Bounds
    choices: tuple[str, ...]  # empty where it is a number

    def allowed(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return "true or false" if self.kind is bool else f"{self.kind.__name__} in {self.bounds}"


@dataclass(frozen=True)
class Objective:
    """An objective with its knobs set: call it with a step."""

    name: str
    knobs: Mapping[str, Any]
    needs: frozenset[str]  # names of optional fields of Step that must be there
    function: Callable[[Step], TokenLoss]

    @property
    def label(self) -> str:
        """Its name with the knobs that are set, e.g. `p3o(kl_estimator=k3)`."""
        knobs = ", ".join(f"{name}={value}" for name, value in self.knobs.items())
        return f"{self.name}({knobs})" if knobs else self.name

    def __call__(self, step: Step) -> TokenLoss:
        """Each token's share of the loss. Raises ValueError where the step lacks what the objective needs."""
        missing = sorted(name for name in self.needs if getattr(step, name) is None)
        if missing:
            raise ValueError(f"objective {self.name!r} needs {', '.join(missing)}, which this step does not have")
        return self.function(step)


def build(name: str, knobs: Mapping[str, Any] | None = None) -> Objective:
    """The named objective with these knobs, the others at their defaults.

    Raises:
        ValueError: no such objective or knob, or a value outside its bounds; says what is allowed.

    """
    canonical = ALIASES.get(name, name)
    if canonical not in OBJECTIVES:
        near = difflib.get_close_matches(name, [*OBJECTIVES, *ALIASES], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(OBJECTIVES))}"
        raise ValueError(f"objective {name!r} is not known; {hint}")
    function = OBJECTIVES[canonical]
    own = {knob.name: knob for knob in knobs_of(function)}
    added = {knob.name: knob for knob in knobs_of(regularized)}
    known = own | added
    given = dict(knobs or {})
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"objective {canonical!r} has no knob {key!r}; it has: {', '.join(known)}")
        given[key] = _checked(canonical, known[key], value)
    needs = needs_of(function, given) | needs_of(regularized, given)
    call = _composed(
        functools.partial(function, **{key: given[key] for key in given if key in own}),
        functools.partial(regularized, **{key: given[key] for key in given if key in added}),
    )
    return Objective(canonical, given, needs, call)


def _composed(
    function: Callable[[Step], TokenLoss], add: Callable[[TokenLoss, Step], TokenLoss]
) -> Callable[[Step], TokenLoss]:
    return lambda step: add(function(step), step)


def knobs_of(function: ObjectiveFunction) -> list[Knob]:
    """The keyword arguments of an objective, from its signature."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [_knob(p.name, p.default, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY]


def _knob(name: str, default: Any, hint: Any) -> Knob:
    bounds = Bounds()
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    choices = tuple(str(choice) for choice in get_args(hint)) if get_origin(hint) is Literal else ()
    return Knob(name, default, str if choices else hint, bounds, choices)


def _checked(objective: str, knob: Knob, value: Any) -> Any:
    if knob.choices:
        good = value in knob.choices
    elif knob.kind is bool:
        good = isinstance(value, bool)
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        good = number and value in knob.bounds and (knob.kind is float or value == int(value))
    if not good:
        raise ValueError(f"objective {objective!r}: {knob.name} must be {knob.allowed()}, not {value!r}")
    return value if knob.choices else knob.kind(value)
