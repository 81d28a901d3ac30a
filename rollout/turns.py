"""One prompt's completions, turn by turn, until the environment says what they are worth.

prompt --generate(n = group_size)--> first turns --+--> act --> Done --> trajectory
                                                   |     |
                                                   |  Continue: the environment's tokens, and the next turn of
                                                   `-----'      this trajectory alone
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from rollout.engines.base import Engine
from rollout.environments.base import Done, Environment, Task
from rollout.environments.failure import Failure
from rollout.environments.transcript import EMPTY
from shared.types import Completion, SamplingSettings, Trajectory


class Player:
    """Plays tasks of an environment on an engine. `max_model_len` bounds prompt plus trajectory, tokens."""

    def __init__(self, engine: Engine, environment: Environment, max_model_len: int) -> None:
        self._engine = engine
        self._environment = environment
        self._max_model_len = max_model_len

    async def play(self, task: Task, n: int, sampling: SamplingSettings) -> tuple[Trajectory, ...]:
        """`n` trajectories of a task; `sampling.max_tokens` bounds each of them, all turns together.

        Raises:
            EnvironmentFailure: the environment failed, or the engine gave what cannot be trained on.
            EngineError: the engine failed.

        """
        if len(task.prompt_ids) + sampling.max_tokens > self._max_model_len:
            raise Failure(
                "too long",
                f"a prompt of {len(task.prompt_ids)} tokens and rollout.sampling.max_tokens {sampling.max_tokens} "
                f"exceed the engine's {self._max_model_len} tokens",
            )
        completions = await self._engine.generate(task.prompt_ids, n, sampling)
        playing = [asyncio.ensure_future(self._finish(task, _checked(c), sampling)) for c in completions]
        try:
            return tuple(await asyncio.gather(*playing))
        finally:
            for other in playing:  # one that failed has failed the group
                other.cancel()

    async def _finish(self, task: Task, first: Completion, sampling: SamplingSettings) -> Trajectory:
        transcript = EMPTY.with_completion(first)
        while True:
            answer = await self._environment.act(task, transcript)
            if isinstance(answer, Done):
                return transcript.finish(answer.reward, answer.rewards, sampling)
            if transcript.finish_reason == "length":
                raise Failure("answer", f"{self._environment.name}: Continue after the last token was spent; say Done")
            room = sampling.max_tokens - len(transcript.token_ids) - len(answer.token_ids)
            if room < 1:  # no turn fits any more: the environment is asked for its verdict
                transcript = replace(transcript, finish_reason="length")
                continue
            transcript = transcript.with_environment(answer.token_ids)
            context = np.concatenate((task.prompt_ids, transcript.token_ids))
            [turn] = await self._engine.generate(context, 1, replace(sampling, max_tokens=room))
            transcript = transcript.with_completion(_checked(turn))


def _checked(completion: Completion) -> Completion:
    """Refuses what no learner can use. Raises EnvironmentFailure."""
    length = len(completion.token_ids)
    if completion.finish_reason == "abort" or not length:
        raise Failure("engine", f"the engine ended a completion after {length} tokens ({completion.finish_reason})")
    if len(completion.behavior_logprobs) != length or not np.isfinite(completion.behavior_logprobs).all():
        raise Failure("engine", "the engine gave log-probs that are missing or not finite")
    return completion
