"""One prompt's completions, turn by turn, until the environment says what they are worth.

prompt --generate(n = group_size)--> first turns --+--> act --> Done --> trajectory
                                                   |     |
                                                   |  Continue: the environment's tokens, and the next turn of
                                                   `-----'      this trajectory alone
expert's answers ------------------------------------> act --> Done --> trajectory of the same group
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rollout.engines.base import Engine
from rollout.environments.base import Done, Environment, Task
from rollout.environments.failure import Failure
from rollout.environments.transcript import EMPTY
from shared.types import Completion, Int32Array, SamplingSettings, Source, Trajectory, VersionSpan


class Player:
    """Plays tasks of an environment on an engine. `max_model_len` bounds prompt plus trajectory, tokens."""

    def __init__(self, engine: Engine, environment: Environment, max_model_len: int) -> None:
        self._engine = engine
        self._environment = environment
        self._max_model_len = max_model_len

    async def play(
        self, task: Task, n: int, sampling: SamplingSettings, experts: Sequence[Int32Array] = ()
    ) -> tuple[Trajectory, ...]:
        """`n` trajectories of a task, then those of the experts' answers [T].

        `sampling.max_tokens` bounds each of them, all turns together.

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
        completions = [_checked(c) for c in await self._engine.generate(task.prompt_ids, n, sampling)]
        served = completions[0].versions[0].policy_version
        trajectories = [self._finish(task, completion, sampling) for completion in completions]
        trajectories += [self._score(task, _said(answer, served), sampling) for answer in experts]
        playing = [asyncio.ensure_future(trajectory) for trajectory in trajectories]
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

    async def _score(self, task: Task, answer: Completion, sampling: SamplingSettings) -> Trajectory:
        """The trajectory of an expert's answer."""
        transcript = EMPTY.with_completion(answer, Source.EXPERT)
        verdict = await self._environment.act(task, transcript)
        if not isinstance(verdict, Done):
            raise Failure("answer", f"{self._environment.name}: Continue after an expert's whole answer; say Done")
        return transcript.finish(verdict.reward, verdict.rewards, sampling)


def _said(answer: Int32Array, served: int) -> Completion:
    """An expert's answer beside what this version draws, which gives it no log-probs."""
    length = len(answer)
    return Completion(answer, np.zeros(length, np.float32), (VersionSpan(served, 0, length),), "stop")


def _checked(completion: Completion) -> Completion:
    """Refuses what no learner can use. Raises EnvironmentFailure."""
    length = len(completion.token_ids)
    if completion.finish_reason == "abort" or not length:
        raise Failure("engine", f"the engine ended a completion after {length} tokens ({completion.finish_reason})")
    if len(completion.behavior_logprobs) != length or not np.isfinite(completion.behavior_logprobs).all():
        raise Failure("engine", "the engine gave log-probs that are missing or not finite")
    return completion
