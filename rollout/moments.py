"""When a server may change its weights (rollout.sync).

    in_flight       now; groups in flight go on with the new weights
    drain           admission stops at once; when the last group in flight has ended
    between_groups  when no group happens to be in flight, admission going on; after rollout.sync_gap_s as drain

A completion spans versions only with in_flight. Draining costs the time of the longest group in flight, in which the
server's capacity empties; between_groups costs freshness instead: it draws on with the old version, as far as
staleness credit goes, and where credit is what a server waits for, the gap comes by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from rollout.admit import Admitter
from rollout.parts import Parts
from shared.errors import DeadlineError


def moment(parts: Parts, admitter: Admitter) -> AbstractAsyncContextManager[None]:
    """Within the block the weights may change. Raises DeadlineError where groups in flight do not end."""
    return nullcontext() if parts.config.rollout.sync == "in_flight" else _drained(parts, admitter)


@asynccontextmanager
async def _drained(parts: Parts, admitter: Admitter) -> AsyncIterator[None]:
    rollout, deadline_s = parts.config.rollout, parts.config.learner.idle_deadline_s
    waiting = parts.status.during("sync", "waiting for the groups in flight to end, for newer weights")
    with waiting:
        if rollout.sync == "between_groups":
            await admitter.idle(rollout.sync_gap_s)
        drained = admitter.drained(deadline_s)
        try:
            await drained.__aenter__()
        except TimeoutError:
            raise DeadlineError(
                f"waited {deadline_s:g} s (learner.idle_deadline_s) for the groups in flight to end, in vain; "
                f"rollout.sync is {rollout.sync}"
            ) from None
    try:
        yield
    finally:
        await drained.__aexit__(None, None, None)
