"""What the API, the page and the metrics say of the controller."""

from __future__ import annotations

import math
import time
from typing import Any, get_args

from services.controller.decide import CALM, KINDS, Level, Memory, actions_left, setting_of
from services.controller.loop import remembered
from services.controller.wishes import wanted_by_operator
from services.status import RunStatus
from shared.config import Config
from shared.metrics import ControlPlaneMetrics

LEVELS: tuple[Level, ...] = get_args(Level)


def controller_fields(status: RunStatus, config: Config) -> dict[str, Any] | None:
    """The fields of `schemas.Controller`; None where it is off, and for a run of another configuration."""
    if not config.controller.enabled or status.run_id != config.run.id:
        return None
    memory, now = remembered(status.controller), time.time()
    return {
        "level": memory.level,
        "sentence": _sentence(memory, status.controller_holder, config, now),
        "holder": status.controller_holder,
        "lag": memory.lag,
        "max_staleness": memory.max_staleness,
        "actions": {kind: memory.counts.get(kind, 0) for kind in KINDS},
        "actions_left": actions_left(config.controller, memory, now),
        "changed_at": memory.said_at or None,
    }


def _sentence(memory: Memory, holder: str, config: Config, now: float) -> str:
    """What holds, why, and what comes next."""
    wanted, rules = wanted_by_operator(config, memory), config.controller
    if not holder:
        return "The controller is enabled, but no control plane holds its lease: nothing is watched."
    left = actions_left(rules, memory, now)
    spent = "" if left else f" Its {rules.actions_per_hour} actions of this hour are used up: it does nothing."
    if memory.level == "watching":
        low = f" ({memory.low} of {rules.patience} steps in a row are low)" if memory.low else ""
        return f"The controller watches: lag and admission are as the operator wants them{low}.{spent}"
    if memory.level == "paused":
        return f"The controller has paused the run: {memory.said}."
    holds, wait = setting_of(memory, wanted), CALM * rules.patience * memory.calm
    return (
        f"The controller holds lag at {holds.lag} (wanted: {wanted.lag}) and draws {holds.max_staleness} ahead "
        f"(wanted: {wanted.max_staleness}), because {memory.said}. It widens when {wait} more "
        f"steps were good than unclear since the last low one ({memory.good} now).{spent}"
    )


def set_controller_gauges(gauges: ControlPlaneMetrics, status: RunStatus | None, config: Config) -> None:
    """NaN where it is off, or where nobody knows."""
    targets = (gauges.controller_level, gauges.controller_lag, gauges.controller_max_staleness)
    if status is None or not config.controller.enabled:
        for gauge in targets:
            gauge.set(math.nan)
        return
    memory = remembered(status.controller)
    holds = setting_of(memory, wanted_by_operator(config, memory))
    for gauge, value in zip(targets, (LEVELS.index(memory.level), holds.lag, holds.max_staleness), strict=True):
        gauge.set(value)
    for kind in KINDS:
        gauges.controller_actions.labels(kind).set(memory.counts.get(kind, 0))
