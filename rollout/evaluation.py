"""Held-out evaluation: a leased job, answered by one version, scored here, never trained on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from rollout.environments.base import Environment
from rollout.environments.failure import Failure
from rollout.turns import Player
from shared.config import Config
from shared.control import EvaluationResult
from shared.types import SamplingSettings, Trajectory

MAX_AT_ONCE = 256  # completions


def servable(pending: Sequence[int], served: int) -> int | None:
    """The oldest pending job that the served version may answer: one for it, or for a version before it."""
    return min((job for job in pending if job <= served), default=None)


class Evaluator:
    """Asks the held-out prompts."""

    def __init__(
        self, config: Config, player: Player, environment: Environment, server_id: str, stop_token_ids: tuple[int, ...]
    ) -> None:
        self._prompts = config.evaluation.prompts
        self._player = player
        self._environment = environment
        self._server_id = server_id
        self._sampling = SamplingSettings(
            temperature=config.evaluation.temperature,
            max_tokens=config.rollout.sampling.max_tokens,
            stop_token_ids=stop_token_ids,
        )
        self._at_once = asyncio.Semaphore(min(MAX_AT_ONCE, config.rollout.groups_in_flight * config.rollout.group_size))

    async def evaluate(self, served: int) -> EvaluationResult:
        """The mean reward over all held-out prompts, each asked once.

        Raises:
            EnvironmentFailure: a scorer failed, or another version than `served` drew a token.
            EngineError: the engine failed.

        """
        started = time.monotonic()
        asking = [asyncio.ensure_future(self._ask(index)) for index in range(self._prompts)]
        try:
            trajectories = await asyncio.gather(*asking)
        finally:
            for other in asking:
                other.cancel()
        drawn_by = {span.policy_version for t in trajectories for span in t.versions}
        if drawn_by != {served}:
            raise Failure("engine", f"versions {sorted(drawn_by)} answered an evaluation of version {served}")
        return EvaluationResult(
            policy_version=served,
            accuracy=sum(t.reward for t in trajectories) / len(trajectories),
            prompts=len(trajectories),
            mean_length=sum(t.length for t in trajectories) / len(trajectories),
            seconds=time.monotonic() - started,
            server_id=self._server_id,
            at=time.time(),
        )

    async def _ask(self, index: int) -> Trajectory:
        async with self._at_once:
            task = await self._environment.draw_heldout(index)
            [trajectory] = await self._player.play(task, 1, self._sampling)
            return trajectory
