"""The gauges of the control plane's /metrics, filled from what Redis says at every scrape."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from services.control_plane import autoscale
from services.control_plane.controller import set_controller_gauges
from services.control_plane.resources import Resources
from services.status import RunStatus, read_status
from shared.budgets import Budgets, budgets
from shared.config import Config
from shared.control import Phase
from shared.errors import StreamError
from shared.redis_client import Memory, memory_of

KINDS = ("learner", "rollout", "control-plane")
STATE = (  # of ControlPlaneMetrics, what has no label and is unknown without Redis
    "policy_version",
    "stream_groups",
    "stream_bytes",
    "stream_limit",
    "dead_letters",
    "dead_letters_ever",
    "desired_servers",
    "paused",
    "last_step_at",
    "redis_memory",
    "redis_memory_limit",
)
PHASES: tuple[str, ...] = get_args(Phase)


def set_gauges(here: Resources) -> None:
    """Fills the gauges from Redis; without it they are NaN, not yesterday's numbers."""
    gauges = here.metrics
    try:
        status = read_status(here.client, here.keys, events=1)
        steps, held = here.control.history(last=autoscale.STEPS), memory_of(here.client)
        bounds = budgets(here.config, here.control.admission_wish().text)
    except StreamError:
        gauges.redis_up.set(0)
        set_controller_gauges(gauges, None, here.config)
        for gauge in (
            *(getattr(gauges, name) for name in STATE),
            *(gauges.members.labels(kind) for kind in KINDS),
            *(gauges.phase.labels(phase) for phase in PHASES),
        ):
            gauge.set(math.nan)
        return
    gauges.redis_up.set(1)
    for name, value in zip(STATE, _state(here.config, status, steps, held, bounds), strict=True):
        getattr(gauges, name).set(value)
    set_controller_gauges(gauges, status, here.config)
    for kind in KINDS:
        gauges.members.labels(kind).set(sum(1 for member in status.of_kind(kind) if member.alive))
    for phase in PHASES:
        gauges.phase.labels(phase).set(phase == status.phase)


def _state(
    config: Config, status: RunStatus, steps: Sequence[Mapping[str, Any]], held: Memory, bounds: Budgets
) -> tuple[float, ...]:
    """The values of STATE."""
    return (
        status.latest.policy_version if status.latest else math.nan,
        status.backlog.groups,
        status.backlog.bytes,
        bounds.max_bytes,
        status.backlog.dead_letters,
        sum(of_reason.count for of_reason in status.dead_letters.values()),
        _desired_servers(config, status, steps, bounds),
        status.paused,
        (steps[-1].get("at") or math.nan) if steps else math.nan,
        held.used,
        held.limit,
    )


def _desired_servers(config: Config, status: RunStatus, steps: Sequence[Mapping[str, Any]], bounds: Budgets) -> int:
    demand = autoscale.demand_of(status, steps, config, bounds, time.time())
    plane = config.control_plane
    return autoscale.desired_rollout_servers(demand, plane.least_servers, plane.most_servers)
