"""One prompt index, from its lease to its end in the stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from rollout.admit import end
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

T = TypeVar("T")

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
            group = await self._unless_halted(self._generate(prompt_index, asked))
            if group is None or not await self._judged(group):
                await self._return(prompt_index)
                return
            self._check_versions(group)
            await self._appender.append(group)
        except EngineError as error:
            if self._engine.failure is not None:
                raise
            if self._syncer.halted.is_set():  # its engine is being replaced
                await self._return(prompt_index)
                return
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

    async def _judged(self, group: Group) -> bool:
        """Waits where an unproven version had a part in a group; False where it was not proven at once."""
        if drawn_by(group) <= self._syncer.proven:
            return True
        return bool(await self._unless_halted(self._syncer.gate.wait()))

    async def _unless_halted(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The work's result, or None where meanwhile the weights turned out not to be what they should."""
        task, halted = asyncio.ensure_future(work), asyncio.ensure_future(self._syncer.halted.wait())
        either: set[asyncio.Future[Any]] = {task, halted}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return None if halted.done() else task.result()
        finally:
            await end(halted)
            await end(task)

    async def _return(self, prompt_index: int) -> None:
        """Gives the prompt back, for any server to draw; that is no failure of the prompt's."""
        self._parts.metrics.groups_discarded.labels("unproven version").inc()
        give_back = self._parts.admission.give_back
        await self._parts.patience("give a prompt back", lambda: give_back([prompt_index]))

    def _check_versions(self, group: Group) -> None:
        if unproven := drawn_by(group) - self._syncer.proven:
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


def drawn_by(group: Group) -> set[int]:
    """The versions that drew its tokens."""
    return {span.policy_version for t in group.trajectories for span in t.versions}
