"""The end of a group at its server: in the stream, as a group or as a failure, or given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rollout.environments.failure import Failure, reason_of
from rollout.parts import Parts
from shared.codec import encode_group
from shared.errors import EnvironmentFailure, OutOfMemoryError
from shared.process import Deadline
from shared.stream import Appended
from shared.types import Group, Source, group_id_for

MAX_ATTEMPTS = 3  # to generate a prompt's group
MAX_REASON = 1000  # characters
MEMORY_POLL_S = 0.5


class Appender:
    """Appends groups and ends prompts that fail for good."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def append(self, group: Group) -> Appended:
        """Appends a group; waits while Redis is full.

        Raises:
            EnvironmentFailure: the group takes more bytes than admission reckons with.
            DeadlineError: Redis stayed full for learner.idle_deadline_s.
            StreamError: Redis stayed away.

        """
        payload = encode_group(group)
        bound = self._parts.config.group_bytes_bound
        if len(payload) > bound:
            raise Failure("too long", f"{group.group_id} takes {len(payload):,} bytes; credit is for {bound:,}")
        stored = await self._store(lambda: self._parts.writer.append(group.prompt_index, group.group_id, payload))
        self._count(group, stored)
        return stored

    async def give_up(self, prompt_index: int, error: EnvironmentFailure) -> bool:
        """Returns the prompt so that it is tried again, the third time ends it; True if that was the end."""
        reason = reason_of(error)
        self._parts.metrics.environment_failures.labels(reason).inc()
        self._parts.metrics.groups_discarded.labels(f"failure: {reason}").inc()
        failed = await self._parts.patience("count a failure", lambda: self._parts.admission.attempts(prompt_index)) + 1
        group_id = group_id_for(self._parts.config.run.id, prompt_index)
        self._parts.log.warning("a group failed", group_id=group_id, attempt=failed, reason=reason, error=str(error))
        if failed < MAX_ATTEMPTS:
            self._parts.metrics.groups_retried.labels(reason).inc()
            await self._parts.patience(
                "give a prompt back", lambda: self._parts.admission.give_back([prompt_index], failed=True)
            )
            return False
        text = f"{reason}: {error}"[:MAX_REASON]
        await self._store(lambda: self._parts.writer.append_failure(prompt_index, group_id, text))
        return True

    async def _store(self, send: Callable[[], Appended]) -> Appended:
        """Sends until Redis has said what became of it."""
        sent, refused = 0, False  # refused: the newest time, because Redis was full

        def attempt() -> Appended:
            nonlocal sent
            sent += 1
            if sent > 1 and not refused:
                self._parts.metrics.appends_resent.inc()
            return send()

        deadline = Deadline("room in Redis, which is at maxmemory", self._parts.config.learner.idle_deadline_s)
        while True:
            try:
                stored = await self._parts.patience("append a group", attempt)
            except OutOfMemoryError:
                refused = True
                deadline.check()
                self._parts.status.say("append", "waiting for room in Redis, which is at maxmemory")
                self._parts.metrics.wait_seconds.labels("Redis memory").inc(MEMORY_POLL_S)
                await asyncio.sleep(MEMORY_POLL_S)
                continue
            self._parts.status.say("append", "")
            if stored is Appended.DUPLICATE and sent > 1:  # the first sending did arrive; only its answer was lost
                return Appended.STORED
            return stored

    def _count(self, group: Group, stored: Appended) -> None:
        if stored is not Appended.STORED:
            self._parts.metrics.groups_discarded.labels(stored.value).inc()
            self._parts.log.warning("a group was not taken", group_id=group.group_id, reason=stored.value)
            return
        tokens = sum(int((t.source == Source.POLICY).sum()) for t in group.trajectories)
        self._parts.metrics.groups_appended.inc()
        self._parts.metrics.tokens_sampled.inc(tokens)
        self._parts.metrics.group_seconds.observe(group.completed_at - group.started_at)
        self._parts.status.appended(tokens)
