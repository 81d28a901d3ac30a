"""The configured objective, and the list of all: `python -m learner.objectives`."""

from __future__ import annotations

import inspect
import sys

from learner.objective.registry import ALIASES, OBJECTIVES, Objective, build, knobs_of
from shared.config.models import LearnerConfig
from shared.errors import ConfigError

PROVIDED = frozenset({"micro_batch_of", "proximal_logprobs"})
"""The optional fields of a step that the train step can give to an objective."""


def objective_of(config: LearnerConfig) -> Objective:
    """The objective of the configuration. Raises ConfigError where it is not known or cannot be served."""
    try:
        objective = build(config.objective.name, config.objective.knobs)
    except ValueError as error:
        raise ConfigError(f"learner.objective: {error}") from None
    missing = sorted(objective.needs - PROVIDED)
    if missing:
        raise ConfigError(
            f"learner.objective: {objective.name!r} needs {', '.join(missing)} for every token, which this learner "
            "does not provide; it can be called as a function, see learner/objective"
        )
    return objective


def describe() -> str:
    """Every objective with its first line, its knobs and what it needs."""
    blocks = []
    for name, function in OBJECTIVES.items():
        others = [alias for alias, of in ALIASES.items() if of == name]
        module = inspect.getdoc(inspect.getmodule(function)) or ""
        lines = [name + (f" (also {', '.join(others)})" if others else ""), f"  {module.splitlines()[0]}"]
        lines += [f"  {knob.name} = {knob.default!r}: {knob.allowed()}" for knob in knobs_of(function)]
        needs = build(name).needs
        lines += [f"  needs {', '.join(sorted(needs))}"] if needs else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.stdout.write(describe() + "\n")
