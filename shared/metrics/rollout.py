"""What a rollout server exports."""

from __future__ import annotations

import math

from shared.metrics.made import Made
from shared.metrics.table import ROLLOUT


class RolloutMetrics:
    """What a rollout server exports."""

    def __init__(self) -> None:
        made = Made(ROLLOUT)
        self.registry = made.registry
        self.groups_appended = made.counter("rollout_groups")
        self.groups_discarded = made.counter("rollout_groups_discarded")
        self.groups_retried = made.counter("rollout_groups_retried")
        self.appends_resent = made.counter("rollout_appends_resent")
        self.tokens_sampled = made.counter("rollout_tokens")
        self.group_seconds = made.histogram("rollout_group_seconds")
        self.environment_failures = made.counter("environment_failures")
        self.in_flight = made.gauge("rollout_groups_in_flight")
        self.busy_share = made.gauge("rollout_busy_share")
        self.busy_seconds = made.counter("rollout_busy_seconds")
        self.served_version = made.gauge("rollout_policy_version")
        self.served_version.set(-1)
        self.sync_seconds = made.histogram("sync_seconds")
        self.sync_stage_seconds = made.histogram("sync_stage_seconds")
        self.pause_seconds = made.histogram("sync_pause_seconds")
        self.syncs = made.counter("syncs")
        self.sync_failures = made.counter("sync_failures", "store", "engine", "transfer", "unproven")
        self.refused_version = made.gauge("rollout_refused_version")
        self.refused_version.set(-1)
        self.floor_max = made.gauge("rollout_numerics_floor_max_nats")
        self.floor_mean = made.gauge("rollout_numerics_floor_mean_nats")
        self.floor_token_ess = made.gauge("rollout_numerics_floor_token_ess")
        for floor in (self.floor_max, self.floor_mean, self.floor_token_ess):
            floor.set(math.nan)  # until a version is proven
        self.lag_asked = made.gauge("rollout_lag_asked_versions")
        self.lag_served = made.gauge("rollout_lag_served_versions")
        self.tensors_unchecked = made.gauge("rollout_tensors_unchecked")
        self.wait_seconds = made.counter("rollout_wait_seconds")
        self.redis = made.of_redis()
