"""What the learner exports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from prometheus_client import Gauge

from shared.histogram import LOG_RATIO_EDGES
from shared.metrics.made import Made, set_parts
from shared.metrics.table import LEARNER
from shared.records import Dropped, StepRecord
from shared.stream import FORGOTTEN, TAKEN_OUT

IntArray = npt.NDArray[np.int64]


class LearnerMetrics:
    """What the learner exports."""

    def __init__(self) -> None:
        made = Made(LEARNER)
        self.registry = made.registry
        of_rows = made.of_rows()
        self.step_gauges = {name: gauge for name, gauge in of_rows.items() if "." not in name}
        self.part_gauges: dict[str, dict[str, Gauge]] = {}
        for name, gauge in of_rows.items():
            part, _, number = name.partition(".")
            if number:
                self.part_gauges.setdefault(part, {})[number] = gauge
        self.steps = made.counter("steps")
        self.steps_skipped = made.counter("steps_skipped")
        self.arm_groups = made.counter("arm_groups")
        self.staleness = made.versions("staleness_versions")
        self.staleness_parts = made.versions("staleness_part_versions")
        self.log_ratio = made.counted("log_ratio_nats", LOG_RATIO_EDGES)
        self.groups_applied = made.counter("groups_applied")
        self.groups_dropped = made.counter("groups_dropped")
        self.groups_dead_lettered = made.counter("groups_dead_lettered")
        self.groups_lost = made.counter("groups_lost", FORGOTTEN, TAKEN_OUT)
        self.dropped_staleness = made.histogram("dropped_staleness_versions")
        self.dropped_length = made.histogram("dropped_completion_tokens")
        self.dropped_reward = made.histogram("dropped_reward")
        self.trained_length = made.histogram("trained_completion_tokens")
        self.trained_reward = made.histogram("trained_reward")
        self.credit_versions = made.gauge("staleness_credit_versions")
        self.tokens_trained = made.counter("tokens_trained")
        self.wait_seconds = made.counter("learner_wait_seconds")
        self.step_seconds = made.histogram("step_seconds")
        self.publish_seconds = made.histogram("publish_seconds")
        self.encode_seconds = made.histogram("patch_encode_seconds")
        self.split_seconds = made.histogram("split_seconds")
        self.split_failures = made.counter("split_failures")
        self.published_bytes = made.counter("published_bytes")
        self.retention_failures = made.counter("retention_failures")
        self.transfers = made.counter("transfers")
        self.transfer_seconds = made.histogram("transfer_seconds")
        self.checkpoints = made.counter("checkpoints")
        self.policy_version = made.gauge("policy_version")
        self.backlog_groups = made.gauge("backlog_groups")
        self.backlog_bytes = made.gauge("backlog_bytes")
        self.backlog_oldest = made.gauge("backlog_oldest_seconds")
        self.backlog_drain = made.gauge("backlog_drain_seconds")
        self.redis = made.of_redis()
        self.tracker_rows = made.counter("tracker_rows")
        self.tracker_failures = made.counter("tracker_failures")

    def observe_publish(self, stored_bytes: int, is_patch: bool, encode_s: float | None) -> None:
        """Adds what a published version put into the store; seconds None: no patch was tried."""
        self.published_bytes.labels("patch" if is_patch else "whole").inc(stored_bytes)
        if encode_s is not None:
            self.encode_seconds.observe(encode_s)

    def observe_backlog(self, groups: int, size: int, oldest_s: float | None, drain_s: float | None) -> None:
        """Sets what waits for the learner: groups, bytes, and seconds of two kinds."""
        self.backlog_groups.set(groups)
        self.backlog_bytes.set(size)
        self.backlog_oldest.set(oldest_s or 0.0)
        if drain_s is not None:
            self.backlog_drain.set(drain_s)

    def count_staleness(self, total: IntArray, parts: Mapping[str, IntArray]) -> None:
        """Counts the staleness of a step's tokens, [n] versions, and its parts by name, [n] each."""
        self.staleness.observe(*np.unique(total, return_counts=True))
        for name, values in parts.items():
            self.staleness_parts.observe(*np.unique(values, return_counts=True), label=name)

    def count_trained(self, groups: Iterable[tuple[float, float]]) -> None:
        """Counts groups that were trained on: of each its mean length, tokens, and mean reward."""
        for length, reward in groups:
            self.trained_length.observe(length)
            self.trained_reward.observe(reward)

    def drop(self, dropped: Dropped, dead_letter: bool = False) -> None:
        """Counts a group that ended without being trained on; a dead letter is kept."""
        self.groups_dropped.labels(dropped.reason).inc()
        if dead_letter:
            self.groups_dead_lettered.labels(dropped.reason).inc()
        seen = {
            self.dropped_staleness: dropped.staleness,
            self.dropped_length: dropped.length_mean,
            self.dropped_reward: dropped.reward_mean,
        }
        for histogram, value in seen.items():
            if value is not None and math.isfinite(value):
                histogram.labels(dropped.reason).observe(value)

    def observe(self, record: StepRecord) -> None:
        """Sets everything that one step's record says."""
        for name, gauge in self.step_gauges.items():
            value = getattr(record, name)
            if value is not None:
                gauge.set(value)
        self._observe_parts(record)
        self.log_ratio.observe(record.log_ratio_counts)
        for arm, part in record.by_arm.items():
            self.arm_groups.labels(arm).inc(part["groups"])
        if record.skipped:
            self.steps_skipped.inc()
        else:
            self.steps.inc()
            self.tokens_trained.inc(record.tokens)
        self.groups_applied.inc(len(record.prompt_indices))
        self.wait_seconds.inc(record.wait_s)
        self.step_seconds.observe(record.compute_s)
        if record.publish_s:
            self.publish_seconds.observe(record.publish_s)

    def _observe_parts(self, record: StepRecord) -> None:
        """A part without tokens in this step has no number any more; a shadow's last comparison stays."""
        for part, gauges in self.part_gauges.items():
            values = getattr(record, part)
            if part == "shadows":
                values = {shadow["objective"]: shadow for shadow in values}
            else:
                for gauge in gauges.values():
                    gauge.clear()
            for label, numbers in values.items():
                set_parts(gauges, label, numbers)
