"""Questions with their solutions, for a supervised warm start: `python -m rollout.examples --help`.

None of them is a held-out question, and they are not the questions that a run begins to train on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from shared.config import Config, load_config
from shared.config.environment import ReasoningGymConfig
from shared.errors import ConfigError


def examples(config: Config, count: int) -> Iterator[dict[str, object]]:
    """`count` rows {"messages": [...], "answer": "..."}, the same ones every time. Raises ConfigError."""
    from rollout.environments.questions import Questions
    from rollout.environments.reasoning_gym import conversation

    environment = config.environment
    if not isinstance(environment, ReasoningGymConfig):
        raise ConfigError("environment.kind is 'python': only reasoning_gym tasks come with solutions to export")
    questions = Questions(environment.dataset, environment.params, config.run.seed, config.evaluation.prompts)
    for index in range(count):
        question = questions.example(index)
        if question.answer is None:
            raise ConfigError(f"environment.dataset {environment.dataset!r} names no solutions; warm-start on another")
        yield {"messages": conversation(question, environment.system_prompt), "answer": question.answer}


def main() -> int:
    """Writes the file. Returns 2 for a configuration that cannot work."""
    parser = argparse.ArgumentParser(prog="python -m rollout.examples", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    parser.add_argument("--count", type=int, required=True, help="how many examples")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file to write")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        with arguments.out.open("w") as file:
            for row in examples(config, arguments.count):
                file.write(json.dumps(row) + "\n")
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
