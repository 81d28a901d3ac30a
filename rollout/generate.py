"""One prompt index, from its lease to its end in the stream."""

from __future__ import annotations

import secrets
import time

from rollout.append import Appender
from rollout.engines.base import Engine
from rollout.environments.base import Environment
from rollout.environments.failure import Failure
from rollout.experts import expert_answers
from rollout.parts import Parts
from rollout.sync import Syncer
from rollout.turns import Player
from shared.errors import EngineError, EnvironmentFailure
from shared.lag import Asked
from shared.types import Group, SamplingSettings, group_id_for

MAX_FAILURES_IN_ROW = 32  # of groups, none between them succeeding


class Generator:
    """Generates, scores and appends groups; counts what fails."""

    def __init__(
        self,
        parts: Parts,
        engine: Engine,
        environment: Environment,
        player: Player,
        syncer: Syncer,
        sampling: SamplingSettings,
    ) -> None:
        self._parts = parts
        self._engine = engine
        self._environment = environment
        self._player = player
        self._syncer = syncer
        self._sampling = sampling
        self._appender = Appender(parts)
        self._failures_in_row = 0

    async def run(self, prompt_index: int, asked: Asked) -> None:
        """Sees one prompt through: appended, given back for another attempt, or ended as a failure.

        Args:
            prompt_index: it was leased.
            asked: the lag that the lease was taken for.

        Raises:
            EngineError: the engine is dead.
            EnvironmentFailure: MAX_FAILURES_IN_ROW groups have failed, one after the other.
            StreamError, DeadlineError: Redis stayed away or full.

        """
        try:
            group = await self._generate(prompt_index, asked)
            await self._syncer.gate.wait()  # what an unproven version had a part in is not appended
            self._check_versions(group)
            await self._appender.append(group)
        except EngineError as error:
            if self._engine.failure is not None:
                raise
            await self._failed(prompt_index, Failure("engine", str(error)))
        except EnvironmentFailure as error:
            await self._failed(prompt_index, error)
        else:
            self._failures_in_row = 0

    async def _generate(self, prompt_index: int, asked: Asked) -> Group:
        started, rollout = time.time(), self._parts.config.rollout
        task = await self._environment.draw(prompt_index)
        experts = await expert_answers(self._environment, task, rollout.experts, rollout.sampling.max_tokens)
        trajectories = await self._player.play(task, rollout.group_size, self._sampling, experts)
        return Group(
            group_id=group_id_for(self._parts.config.run.id, prompt_index),
            prompt_index=prompt_index,
            environment=self._environment.name,
            prompt_ids=task.prompt_ids,
            trajectories=trajectories,
            server_id=self._parts.server_id,
            lag=asked.lag,
            started_at=started,
            completed_at=time.time(),
            trace_id=secrets.token_hex(8),
            arm=asked.arm,
        )

    def _check_versions(self, group: Group) -> None:
        drawn_by = {span.policy_version for t in group.trajectories for span in t.versions}
        if unproven := drawn_by - self._syncer.proven:
            raise Failure(
                "engine", f"{group.group_id} was drawn by {sorted(unproven)}, which this server has not proven"
            )

    async def _failed(self, prompt_index: int, error: EnvironmentFailure) -> None:
        await self._appender.give_up(prompt_index, error)
        self._failures_in_row += 1
        if self._failures_in_row >= MAX_FAILURES_IN_ROW:
            raise EnvironmentFailure(
                f"{self._failures_in_row} groups failed, none succeeded between them; the last: {error}"
            )
