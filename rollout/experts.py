"""Expert answers for groups: as many as `rollout.experts` asks for, from what the environment gives."""

from __future__ import annotations

from itertools import cycle, islice

from rollout.environments.base import Environment, Task
from rollout.environments.failure import Failure
from shared.errors import ConfigError
from shared.types import Int32Array


async def check_experts(environment: Environment, count: int) -> None:
    """Asks for those of the first prompt, if any are wanted. Raises ConfigError where the environment has none."""
    if count and not await environment.draw_experts(await environment.draw(0)):
        raise no_experts(count, environment.name)


def no_experts(count: int, name: str) -> ConfigError:
    """What to say of an environment that has none."""
    return ConfigError(
        f"rollout.experts is {count}, but {name} gives no expert answers: choose another environment or define "
        "`experts` in your own, or set rollout.experts to 0 and an objective that learns from none"
    )


async def expert_answers(environment: Environment, task: Task, count: int, max_tokens: int) -> list[Int32Array]:
    """`count` answers [T] to a task, the given ones over and over.

    Raises:
        EnvironmentFailure: the environment gives none, or one that is empty or longer than max_tokens.

    """
    if not count:
        return []
    given = await environment.draw_experts(task)
    if not given:
        raise Failure("answer", f"{environment.name} gives no expert answer to this prompt")
    for answer in given:
        if answer.ndim != 1 or not len(answer):
            raise Failure("answer", f"{environment.name}: an expert's answer is empty or no list of token ids")
        if len(answer) > max_tokens:
            raise Failure(
                "too long",
                f"{environment.name}: an expert's answer takes {len(answer)} tokens; rollout.sampling.max_tokens is "
                f"{max_tokens}",
            )
    return list(islice(cycle(given), count))
