"""The configured objectives, and the list of all: `python -m learner.objectives`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learner.objective.core import needs_of
from learner.objective.registry import ALIASES, OBJECTIVES, Knob, Objective, build, knobs_of
from learner.objective.regularization import regularized
from shared.config import Config
from shared.config.learner import LearnerConfig, ObjectiveConfig
from shared.errors import ConfigError


@dataclass(frozen=True)
class Objectives:
    """The objective that is trained, and those that only say what they would have done."""

    trained: Objective
    shadows: tuple[Objective, ...] = ()
    measured: frozenset[str] = frozenset()  # optional fields of a step that are wanted for themselves

    @property
    def needs(self) -> frozenset[str]:
        """The optional fields of a step that they need, together, and what is measured."""
        return self.trained.needs.union(self.measured, *(shadow.needs for shadow in self.shadows))


def objectives_of(config: LearnerConfig) -> Objectives:
    """The objectives of the configuration. Raises ConfigError where one is not known or a knob is wrong."""
    shadows = tuple(_built(shadow, f"learner.shadows[{i}]") for i, shadow in enumerate(config.shadows))
    labels = [shadow.label for shadow in shadows]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ConfigError(f"learner.shadows: {twice[0]} is there more than once")
    measured = frozenset({"entropy"} if config.entropy else ())
    return Objectives(_built(config.objective, "learner.objective"), shadows, measured)


def servable_objectives(config: Config) -> Objectives:
    """The same, and every one can be given what it needs. Raises ConfigError where that cannot be."""
    objectives = objectives_of(config.learner)
    experts = config.rollout.experts
    keys = ["learner.objective", *(f"learner.shadows[{i}]" for i in range(len(objectives.shadows)))]
    for key, objective in zip(keys, (objectives.trained, *objectives.shadows), strict=True):
        if experts and "expert" not in objective.needs:
            raise ConfigError(
                f"{key}: {objective.name!r} does not learn from experts, and rollout.experts is {experts}: set that to "
                "0, or choose an objective that does (chord)"
            )
        if not experts and "expert" in objective.needs:
            raise ConfigError(f"{key}: {objective.name!r} learns from experts: rollout.experts must be at least 1")
    return objectives


def _built(config: ObjectiveConfig, key: str) -> Objective:
    try:
        return build(config.name, config.knobs)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def describe() -> str:
    """Every objective with its first line, its equation, its knobs, what it needs and its source."""
    blocks = []
    for name, function in OBJECTIVES.items():
        others = [_alias(alias, preset) for alias, (of, preset) in ALIASES.items() if of == name]
        title = name + (f" (also {', '.join(others)})" if others else "")
        needs = ", ".join(sorted(needs_of(function, {})))
        module = inspect.getdoc(inspect.getmodule(function)) or ""
        lines = [*module.splitlines(), *_knob_lines(knobs_of(function))]
        lines += [f"needs {needs}"] if needs else []
        blocks.append("\n".join([title, *(f"  {line}".rstrip() for line in lines)]))
    blocks.append(
        "\n".join(["every objective also takes", *(f"  {line}" for line in _knob_lines(knobs_of(regularized)))])
    )
    return "\n\n".join(blocks)


def _alias(name: str, preset: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{knob}={value}" for knob, value in preset.items())])


def _knob_lines(knobs: list[Knob]) -> list[str]:
    return [f"{knob.name} = {knob.default!r}: {knob.allowed()}" for knob in knobs]


def main() -> int:
    """Prints the list, or draws the picture of the KL estimators."""
    parser = argparse.ArgumentParser(prog="trustbatch objectives", description="Lists the objectives.")
    parser.add_argument("--figure", type=Path, help="draws the two KL estimators against the ratio into this file")
    figure = parser.parse_args().figure
    if figure is None:
        sys.stdout.write(describe() + "\n")
        return 0
    from learner.figures import draw_estimators

    try:
        draw_estimators(figure)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{figure} cannot be written: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
