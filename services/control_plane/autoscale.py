"""How many rollout servers the learner could use: one number, for whatever starts and stops them.

    too few:   the learner waits for groups a share s of its time     -> servers / (1 - s), at most twice as many
    too many:  it never waits and finished groups pile up behind it   -> a quarter fewer, at least one
    otherwise  as many as there are; never more while somebody wants less asked for ahead than is configured: then the
               learner waits because it is meant to

The second is where staleness comes from that buys nothing: groups wait in the stream while the policy moves on. Between
the two rules nothing changes, so that a number near its right value does not swing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.status import RunStatus
from shared.budgets import Budgets, budgets
from shared.config import Config

STARVING = 0.10  # share of the learner's time that it waits, above which more servers pay
SATURATED = 0.02  # below it, the learner never waits
PILED_UP = 0.75  # share of the staleness credit that is finished groups, nobody's work any more
FASTEST = 2.0  # factor of growth in one look
STEPS = 20  # newest steps that are looked at


@dataclass(frozen=True)
class Demand:
    """What the number is computed from."""

    phase: str
    paused: bool
    servers: int  # living rollout servers
    wait_s: float  # the learner waited for groups, over the newest steps and until now
    work_s: float  # it trained and published
    ready: int  # groups in the stream, not yet applied
    credit: int  # groups that may be asked for and not yet applied
    narrowed: bool = False  # somebody wants smaller budgets than the configuration's


def desired_rollout_servers(seen: Demand, least: int, most: int) -> int:
    """Rollout servers that this learner could use now.

    Args:
        seen: the run as it is.
        least: while the run goes on, no fewer.
        most: no more, ever.

    Returns:
        0 where the run has ended (finished, failed); else least..most.

    """
    if seen.phase in ("finished", "failed"):
        return 0
    return min(max(_unbounded(seen), least), most)


def _unbounded(seen: Demand) -> int:
    spent = seen.wait_s + seen.work_s
    if seen.paused or seen.phase != "running" or seen.servers == 0 or not spent > 0:
        return seen.servers
    waiting = seen.wait_s / spent
    if waiting > STARVING and not seen.narrowed:
        return math.ceil(seen.servers * min(1 / (1 - waiting) if waiting < 1 else FASTEST, FASTEST))
    if waiting < SATURATED and seen.ready > PILED_UP * seen.credit:
        return seen.servers - max(1, seen.servers // 4)
    return seen.servers


def demand_of(
    status: RunStatus, steps: Sequence[Mapping[str, Any]], config: Config, bounds: Budgets, now: float
) -> Demand:
    """The demand as control state and history tell it; `steps` are the newest ones' records, oldest first."""
    newest = steps[-STEPS:]
    learner = status.member("learner")
    waits_now = learner is not None and learner.alive and learner.state.startswith("waiting for groups")
    since = newest[-1].get("at") if newest else (learner.since if learner is not None else None)
    idle = max(0.0, now - since) if waits_now and since is not None else 0.0
    return Demand(
        phase=status.phase,
        paused=status.paused,
        servers=sum(1 for member in status.of_kind("rollout") if member.alive),
        wait_s=idle + _sum(newest, "wait_s"),
        work_s=_sum(newest, "compute_s") + _sum(newest, "publish_s"),
        ready=status.backlog.unapplied,
        credit=(bounds.max_staleness + 1) * config.learner.groups_per_publish,
        narrowed=bounds != budgets(config, b""),
    )


def _sum(steps: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over the rows that have it: another release may have written them."""
    return sum(float(step.get(name) or 0.0) for step in steps)
