"""What the control plane exports: the state that it reads, for those who scrape only one address."""

from __future__ import annotations

from shared.metrics.made import Made
from shared.metrics.table import CONTROL_PLANE


class ControlPlaneMetrics:
    """What the control plane exports."""

    def __init__(self) -> None:
        made = Made(CONTROL_PLANE)
        self.registry = made.registry
        self.requests = made.counter("http_requests")
        self.redis_up = made.gauge("redis_up")
        self.redis_memory = made.gauge("redis_memory_bytes")
        self.redis_memory_limit = made.gauge("redis_memory_limit_bytes")
        self.members = made.gauge("members")
        self.policy_version = made.gauge("latest_policy_version")
        self.stream_groups = made.gauge("stream_groups")
        self.stream_bytes = made.gauge("stream_bytes")
        self.stream_limit = made.gauge("stream_limit_bytes")
        self.dead_letters = made.gauge("dead_letters")
        self.dead_letters_ever = made.gauge("dead_letters_ever")
        self.phase = made.gauge("run_phase")
        self.paused = made.gauge("paused")
        self.last_step_at = made.gauge("last_step_timestamp_seconds")
        self.controller_level = made.gauge("controller_level")
        self.controller_lag = made.gauge("controller_lag_versions")
        self.controller_max_staleness = made.gauge("controller_max_staleness_versions")
        self.controller_actions = made.gauge("controller_actions")
        self.desired_servers = made.gauge("desired_rollout_servers")
