"""Every Prometheus metric: name, type, unit and meaning, in one place, and the endpoint that serves them.

Each process has a registry of its own. A number on the dashboard leads here, and from here to the one
function that sets it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from shared.histogram import VERSIONS, VersionsHistogram
from shared.records import Dropped, StepRecord

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAUSES = tuple(step * 10**power for power in range(-3, 1) for step in (1, 1.5, 2, 3, 4, 6, 8))  # 1 ms .. 8 s
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_REWARDS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 2, 10)

IntArray = npt.NDArray[np.int64]


class LearnerMetrics:
    """What the learner exports."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.steps = Counter("trustbatch_steps", "Optimizer steps taken.", registry=r)
        self.step_gauges = {
            name: Gauge(f"trustbatch_{metric}", text, registry=r) for name, (metric, text) in _STEP_GAUGES.items()
        }
        self.staleness_gauges = {
            name: Gauge(f"trustbatch_staleness_{name}", f"{text} Of each staleness bucket.", ["versions"], registry=r)
            for name, text in _STALENESS_GAUGES.items()
        }
        self.shadow_gauges = {
            name: Gauge(f"trustbatch_shadow_{name}", f"{text} Of a shadow objective.", ["objective"], registry=r)
            for name, text in _SHADOW_GAUGES.items()
        }
        self.arm_gauges = {
            name: Gauge(f"trustbatch_arm_{name}", f"{text} Of each arm, by the lag asked for.", ["arm"], registry=r)
            for name, text in _ARM_GAUGES.items()
        }
        self.arm_groups = Counter("trustbatch_arm_groups", "Groups trained on, by arm.", ["arm"], registry=r)
        self.staleness = VersionsHistogram(
            "trustbatch_staleness_versions", "Versions between drawing a token and training on it, per trained token."
        )
        self.staleness_parts = VersionsHistogram(
            "trustbatch_staleness_part_versions",
            "The parts of it: lag (asked for), flight (until the group was appended), queue (until it was trained on).",
            "part",
        )
        r.register(self.staleness)
        r.register(self.staleness_parts)
        self.groups_applied = Counter(
            "trustbatch_groups_applied", "Groups that ended in an optimizer step.", registry=r
        )
        self.groups_dropped = Counter(
            "trustbatch_groups_dropped", "Groups that ended without being trained on.", ["reason"], registry=r
        )
        self.dropped_staleness = Histogram(
            "trustbatch_dropped_staleness_versions",
            "Versions that the oldest token of a dropped group was behind, by reason.",
            ["reason"],
            buckets=VERSIONS,
            registry=r,
        )
        self.dropped_length = Histogram(
            "trustbatch_dropped_completion_tokens",
            "Mean completion length of a dropped group, tokens, by reason.",
            ["reason"],
            buckets=_TOKENS,
            registry=r,
        )
        self.dropped_reward = Histogram(
            "trustbatch_dropped_reward",
            "Mean reward of a dropped group, by reason.",
            ["reason"],
            buckets=_REWARDS,
            registry=r,
        )
        self.credit_versions = Gauge(
            "trustbatch_staleness_credit_versions",
            "Versions that rollout servers may be ahead of training.",
            registry=r,
        )
        self.groups_lost = Counter(
            "trustbatch_groups_lost", "Acknowledged groups that Redis lost, by how.", ["cause"], registry=r
        )
        self.tokens_trained = Counter("trustbatch_tokens_trained", "Tokens with a gradient.", registry=r)
        self.wait_seconds = Counter("trustbatch_learner_wait_seconds", "Time spent waiting for groups.", registry=r)
        self.step_seconds = Histogram(
            "trustbatch_step_seconds", "Forward, backward and optimizer of a step.", buckets=_SECONDS, registry=r
        )
        self.publish_seconds = Histogram(
            "trustbatch_publish_seconds", "Writing and announcing a version.", buckets=_SECONDS, registry=r
        )
        self.encode_seconds = Histogram(
            "trustbatch_patch_encode_seconds",
            "Making a patch, whether it was small enough or not.",
            buckets=_SECONDS,
            registry=r,
        )
        self.published_bytes = Counter(
            "trustbatch_published_bytes", "Weights put into the store, by how: whole or patch.", ["kind"], registry=r
        )
        self.retention_failures = Counter(
            "trustbatch_retention_failures",
            "Publishes after which versions that nobody needs could not be deleted.",
            registry=r,
        )
        self.transfers = Counter(
            "trustbatch_transfers", "Servers that a version was sent to over the wire.", ["outcome"], registry=r
        )
        self.transfer_seconds = Histogram(
            "trustbatch_transfer_seconds",
            "Sending a version, invitation to last receipt.",
            buckets=_SECONDS,
            registry=r,
        )
        self.checkpoints = Counter("trustbatch_checkpoints", "Durable checkpoints written.", registry=r)
        self.policy_version = Gauge("trustbatch_policy_version", "Newest published version.", registry=r)
        self.backlog_groups = Gauge("trustbatch_backlog_groups", "Groups in the stream not yet applied.", registry=r)
        self.backlog_bytes = Gauge("trustbatch_backlog_bytes", "Payload bytes in the stream.", registry=r)

    def observe_publish(self, stored_bytes: int, is_patch: bool, encode_s: float | None) -> None:
        """Adds what a published version put into the store; seconds None: no patch was tried."""
        self.published_bytes.labels("patch" if is_patch else "whole").inc(stored_bytes)
        if encode_s is not None:
            self.encode_seconds.observe(encode_s)

    def count_staleness(self, total: IntArray, parts: Mapping[str, IntArray]) -> None:
        """Counts the staleness of a step's tokens, [n] versions, and its parts by name, [n] each."""
        self.staleness.observe(*np.unique(total, return_counts=True))
        for name, values in parts.items():
            self.staleness_parts.observe(*np.unique(values, return_counts=True), label=name)

    def drop(self, dropped: Dropped) -> None:
        """Counts a group that ended without being trained on."""
        self.groups_dropped.labels(dropped.reason).inc()
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
        for gauge in self.staleness_gauges.values():
            gauge.clear()  # a bucket without tokens has no ESS
        for versions, part in record.by_staleness.items():
            _set(self.staleness_gauges, versions, part)
        for gauge in self.arm_gauges.values():
            gauge.clear()  # an arm without groups has no reward
        for arm, part in record.by_arm.items():
            _set(self.arm_gauges, arm, part)
            self.arm_groups.labels(arm).inc(part["groups"])
        for shadow in record.shadows:
            _set(self.shadow_gauges, shadow["objective"], shadow)
        if not record.skipped:
            self.steps.inc()
            self.tokens_trained.inc(record.tokens)
        self.groups_applied.inc(len(record.prompt_indices))
        self.wait_seconds.inc(record.wait_s)
        self.step_seconds.observe(record.compute_s)
        if record.publish_s:
            self.publish_seconds.observe(record.publish_s)


def _set(gauges: Mapping[str, Gauge], label: str, values: Mapping[str, Any]) -> None:
    for name, gauge in gauges.items():
        if values[name] is not None:
            gauge.labels(label).set(values[name])


_STALENESS_GAUGES: dict[str, str] = {
    "token_ess": "Normalized effective sample size over tokens.",
    "sequence_ess": "The same over completions, by their oldest token.",
    "capped_share": "Share of tokens that the objective capped, clipped or masked.",
    "tokens": "Trained tokens.",
}
_ARM_GAUGES: dict[str, str] = {
    "reward_mean": "Mean reward of the step's trajectories.",
    "length_mean": "Mean completion length, tokens.",
    "staleness_mean": "Mean staleness of the step's tokens, versions.",
    "token_ess": "Normalized effective sample size over tokens.",
    "sequence_ess": "The same over completions.",
    "kl": "Unbiased estimate of KL(policy || behavior) per token, nats.",
    "capped_share": "Share of tokens that the objective capped, clipped or masked.",
    "tokens": "Trained tokens.",
}
_SHADOW_GAUGES: dict[str, str] = {
    "loss": "Loss.",
    "cut_share": "Share of tokens clipped, capped or masked.",
    "zero_weight_share": "Share of tokens without a score term.",
    "weight_ess": "Normalized effective sample size of the tokens' weights.",
    "step_factor": "Factor of the learning rate.",
    "cosine": "Cosine between its gradient and the one taken, at the last comparison.",
}
_STEP_GAUGES: dict[str, tuple[str, str]] = {
    "step": ("step", "Optimizer steps in this lineage."),
    "reward_mean": ("reward_mean", "Mean reward of the step's trajectories."),
    "signal_share": ("signal_share", "Share of groups with unequal rewards."),
    "length_mean": ("completion_tokens_mean", "Mean completion length, tokens."),
    "truncated_share": ("truncated_share", "Share of completions cut by max_tokens."),
    "token_ess": ("token_ess", "Normalized effective sample size over the step's tokens, in [1/n, 1]."),
    "sequence_ess": ("sequence_ess", "The same over completions, each with the ratio of the whole completion."),
    "log1m_token_ess": ("log1m_token_ess", "log(1 - token_ess): moves while token_ess still reads 1.00."),
    "chi2": ("chi2", "1 / token_ess - 1, estimate of chi2(policy || behavior)."),
    "ratio_min": ("ratio_min", "Smallest policy / behavior ratio of a token."),
    "ratio_p1": ("ratio_p1", "Ratio that 1 % of the tokens are below."),
    "ratio_p50": ("ratio_p50", "Median ratio of the tokens."),
    "ratio_p99": ("ratio_p99", "Ratio that 1 % of the tokens are above."),
    "ratio_max": ("ratio_max", "Largest policy / behavior ratio of a token."),
    "log_ratio_abs_max": ("log_ratio_abs_max_nats", "Largest |log ratio| of a token, nats."),
    "largest_weight_share": ("largest_weight_share", "Largest ratio of a token / sum of all."),
    "top_1_percent_mass": ("top_1_percent_mass", "Sum of the largest hundredth of the ratios / sum of all."),
    "kl": ("kl_nats", "Unbiased estimate of KL(policy || behavior) per token, nats."),
    "k1": ("k1_nats", "Mean of -log_ratio per token, nats."),
    "k2": ("k2_nats", "Mean of log_ratio^2 / 2 per token, nats."),
    "k3": ("k3_nats", "Mean of log_ratio + 1/ratio - 1 per token, nats."),
    "capped_share": ("capped_share", "Share of tokens that the objective capped, clipped or masked."),
    "zero_weight_share": ("zero_weight_share", "Share of tokens without a score term."),
    "staleness_mean": ("staleness_mean_versions", "Mean staleness of the step's tokens, versions."),
    "staleness_max": ("staleness_max_versions", "Largest staleness of the step's tokens, versions."),
    "lag_mean": ("staleness_lag_mean_versions", "Part of it that was asked for."),
    "lag_max": ("staleness_lag_max_versions", "Largest part that was asked for."),
    "flight_mean": ("staleness_flight_mean_versions", "Part beyond the lag that came before the append."),
    "flight_max": ("staleness_flight_max_versions", "Largest part beyond the lag that came before the append."),
    "queue_mean": ("staleness_queue_mean_versions", "Part that came between append and training."),
    "queue_max": ("staleness_queue_max_versions", "Largest part that came between append and training."),
    "computed_tokens": ("computed_tokens", "Tokens that the model computed in a pass, prompts included."),
    "micro_batches": ("micro_batches", "Micro-batches of the step."),
    "packing_efficiency": ("packing_efficiency", "Share of the micro-batches' token budgets that is used."),
    "prepass_s": ("prepass_seconds", "Forward passes of the step that served its statistics alone."),
    "floor_max_nats": ("numerics_floor_max_nats", "Largest |log ratio| at staleness 0, before the update, nats."),
    "loss": ("loss", "Objective's value."),
    "grad_norm": ("grad_norm", "Gradient norm before clipping."),
    "learning_rate": ("learning_rate", "Learning rate of the step."),
}
assert _STEP_GAUGES.keys() <= {f.name for f in fields(StepRecord)}

STEP_TEXTS: dict[str, str] = {name: text for name, (_, text) in _STEP_GAUGES.items()}
"""What each number of a StepRecord means."""


class RolloutMetrics:
    """What a rollout server exports."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.groups_appended = Counter("trustbatch_rollout_groups", "Groups that Redis acknowledged.", registry=r)
        self.groups_discarded = Counter(
            "trustbatch_rollout_groups_discarded", "Generated groups that were not appended.", ["reason"], registry=r
        )
        self.tokens_sampled = Counter("trustbatch_rollout_tokens", "Tokens drawn for training.", registry=r)
        self.group_seconds = Histogram(
            "trustbatch_rollout_group_seconds", "From a prompt to its scored group.", buckets=_SECONDS, registry=r
        )
        self.environment_failures = Counter(
            "trustbatch_environment_failures", "Scorer or environment failures.", ["reason"], registry=r
        )
        self.in_flight = Gauge("trustbatch_rollout_groups_in_flight", "Groups being generated.", registry=r)
        self.served_version = Gauge("trustbatch_rollout_policy_version", "Version served, proven.", registry=r)
        self.sync_seconds = Histogram(
            "trustbatch_sync_seconds", "From looking for a version to serving it, proven.", buckets=_SECONDS, registry=r
        )
        self.sync_stage_seconds = Histogram(
            "trustbatch_sync_stage_seconds",
            "Parts of a sync: fetch (and verify), stage, wait (for groups in flight), load, receive, probe, tensors.",
            ["stage"],
            buckets=_SECONDS,
            registry=r,
        )
        self.pause_seconds = Histogram(
            "trustbatch_sync_pause_seconds", "Generation stood still for a sync.", buckets=_PAUSES, registry=r
        )
        self.syncs = Counter("trustbatch_syncs", "Versions loaded, by the way they came.", ["way"], registry=r)
        self.sync_failures = Counter("trustbatch_sync_failures", "Versions refused.", ["reason"], registry=r)
        self.refused_version = Gauge(
            "trustbatch_rollout_refused_version", "Version that this server cannot prove; -1: none.", registry=r
        )
        self.refused_version.set(-1)
        self.floor_max = Gauge(
            "trustbatch_rollout_numerics_floor_max_nats",
            "Largest difference between the served version and its probe, nats.",
            registry=r,
        )
        self.lag_asked = Gauge(
            "trustbatch_rollout_lag_asked_versions", "Versions behind the newest that it is asked to serve.", registry=r
        )
        self.lag_served = Gauge(
            "trustbatch_rollout_lag_served_versions", "Versions behind the newest that it serves.", registry=r
        )
        self.floor_mean = Gauge(
            "trustbatch_rollout_numerics_floor_mean_nats",
            "Mean |difference| between the served version and its probe, nats.",
            registry=r,
        )
        self.floor_token_ess = Gauge(
            "trustbatch_rollout_numerics_floor_token_ess",
            "Normalized effective sample size over the probe's tokens: that of staleness 0.",
            registry=r,
        )
        self.tensors_unchecked = Gauge(
            "trustbatch_rollout_tensors_unchecked", "Loaded tensors of which only the probe says something.", registry=r
        )
        self.wait_seconds = Counter(
            "trustbatch_rollout_wait_seconds", "Time without credit, by what it waited for.", ["reason"], registry=r
        )


class ControlPlaneMetrics:
    """What the control plane exports: the state that it reads, for those who scrape only one address."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter("trustbatch_http_requests", "Requests.", ["method", "route", "status"], registry=r)
        self.redis_up = Gauge("trustbatch_redis_up", "1 while Redis answers.", registry=r)
        self.members = Gauge("trustbatch_members", "Living components.", ["kind"], registry=r)
        self.policy_version = Gauge("trustbatch_latest_policy_version", "Newest published version.", registry=r)
        self.stream_groups = Gauge("trustbatch_stream_groups", "Groups in the stream, applied or not.", registry=r)
        self.stream_bytes = Gauge("trustbatch_stream_bytes", "Payload bytes in the stream.", registry=r)
        self.dead_letters = Gauge("trustbatch_dead_letters", "Entries in the dead letters.", registry=r)
        self.desired_servers = Gauge(
            "trustbatch_desired_rollout_servers",
            "Rollout servers that the learner could use; 0 once the run has ended.",
            registry=r,
        )


def serve(registry: CollectorRegistry, host: str, port: int) -> tuple[WSGIServer, Thread, str]:
    """Starts the endpoint; port 0 takes a free one. Returns server, thread and the address to scrape."""
    server, thread = start_http_server(port, addr=host, registry=registry)
    return server, thread, f"http://{host}:{server.server_port}/metrics"
