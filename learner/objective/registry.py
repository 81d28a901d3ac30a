"""Objectives by name. What an objective needs and which knobs it has is read from its function, written once.

To add one: a file with a function `name(step: Step, *, knob: Annotated[float, Bounds(...)] = default) -> TokenLoss`,
a test file, and its line in `OBJECTIVES`. Every objective also takes the knobs of `regularized`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
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

ALIASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ppo": ("grpo", {"aggregation": "token_mean"}),
    "dr_grpo": ("grpo", {"aggregation": "sequence_sum"}),  # its loss; its advantage is learner.advantage=group_mean
    "tis": ("truncated_is", {}),
    "aipo": ("truncated_is", {}),
    "decoupled": ("decoupled_ppo", {}),
    "areal": ("decoupled_ppo", {}),
}
"""Other names: of which objective, and the knobs that the name stands for."""

LIVE = frozenset({"eps_low", "eps_high", "cap", "second_moment", "entropy_weight", "ref_kl_weight", "kl_weight", "mu"})
"""Numbers that may change between two steps of a run: how far ratios are trusted, and the weights of terms. No
objective holds anything of them from step to step, and within its bounds each of their values is one to train with."""


@dataclass(frozen=True)
class Knob:
    """One keyword argument of an objective."""

    name: str
    default: float | int | bool | str
    kind: type
    bounds: Bounds | None  # of a number
    choices: tuple[str, ...]  # empty where it is a number or a bool

    def allowed(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return f"a number {self.bounds}" if self.bounds else "true or false"


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


def canonical(name: str) -> tuple[str, dict[str, Any]]:
    """The objective that a name or an alias means, and the knobs that the alias stands for; others stay as they are."""
    own, preset = ALIASES.get(name, (name, {}))
    return own, dict(preset)


def build(name: str, knobs: Mapping[str, Any] | None = None) -> Objective:
    """The named objective with these knobs, then those of its alias, the others at their defaults.

    Raises:
        ValueError: no such objective or knob, or a value outside its bounds; says what is allowed.

    """
    own_name, preset = canonical(name)
    if own_name not in OBJECTIVES:
        raise ValueError(f"objective {name!r} is not known; {_hint(name)}")
    function = OBJECTIVES[own_name]
    own = {knob.name: knob for knob in knobs_of(function)}
    added = {knob.name: knob for knob in knobs_of(regularized)}
    known = own | added
    given = preset | dict(knobs or {})
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"objective {own_name!r} has no knob {key!r}; it has: {', '.join(known)}")
        given[key] = _checked(own_name, known[key], value)
    needs = needs_of(function, given) | needs_of(regularized, given)
    call = _composed(
        functools.partial(function, **{key: given[key] for key in given if key in own}),
        functools.partial(regularized, **{key: given[key] for key in given if key in added}),
    )
    return Objective(own_name, given, needs, call)


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, [*OBJECTIVES, *ALIASES], n=3)
    near.sort(key=lambda other: other in ALIASES)  # objectives before other names
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(OBJECTIVES))}"


def _composed(
    function: Callable[[Step], TokenLoss], add: Callable[[TokenLoss, Step], TokenLoss]
) -> Callable[[Step], TokenLoss]:
    return lambda step: add(function(step), step)


def knobs_of(function: ObjectiveFunction) -> list[Knob]:
    """The keyword arguments of an objective, from its signature."""
    hints = get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    return [_knob(p.name, p.default, hints[p.name]) for p in parameters if p.kind is p.KEYWORD_ONLY]


def live_knobs(objective: Objective) -> list[Knob]:
    """The knobs of an objective that may change while a run goes on."""
    knobs = [*knobs_of(OBJECTIVES[objective.name]), *knobs_of(regularized)]
    return [knob for knob in knobs if knob.name in LIVE and knob.bounds is not None]


def _knob(name: str, default: Any, hint: Any) -> Knob:
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    choices = tuple(str(choice) for choice in get_args(hint)) if get_origin(hint) is Literal else ()
    return Knob(name, default, str if choices else hint, bounds, choices)


def _checked(objective: str, knob: Knob, value: Any) -> Any:
    """The value in the knob's own type. Raises ValueError where it is none that is allowed."""
    if knob.choices or knob.kind is bool:
        good = value in knob.choices if knob.choices else isinstance(value, bool)
    else:
        number = _number(value)
        good = number is not None and knob.bounds is not None and number in knob.bounds
        value = number if good else value
    if not good:
        raise ValueError(f"objective {objective!r}: {knob.name} must be {knob.allowed()}, not {value!r}")
    return value


def _number(value: Any) -> float | None:
    """A number, also one that YAML 1.1 takes for a string: 3e-4 has no dot."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
