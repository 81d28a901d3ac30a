"""Every Prometheus metric: name, type, unit and meaning, in one place, and the endpoint that serves them.

Each process has a registry of its own. A number on the dashboard leads here, and from here to the one
function that sets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import HistogramMetricFamily

from shared.records import StepRecord

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_VERSIONS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


class StalenessHistogram:
    """Staleness of every trained token; a step's millions of them are counted by value, not one by one."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def observe(self, values: Iterable[int], counts: Iterable[int]) -> None:
        """Adds so many tokens of each staleness, versions."""
        counted = dict(self._counts)
        for value, count in zip(values, counts, strict=True):
            counted[int(value)] = counted.get(int(value), 0) + int(count)
        self._counts = counted  # replaced whole: a scrape reads in another thread

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What prometheus_client asks for at every scrape."""
        counts = self._counts
        upto = [(f"{float(bound)}", sum(n for value, n in counts.items() if value <= bound)) for bound in _VERSIONS]
        yield HistogramMetricFamily(
            "trustbatch_staleness_versions",
            "Versions between drawing a token and training on it, per trained token.",
            buckets=[*upto, ("+Inf", sum(counts.values()))],
            sum_value=sum(value * n for value, n in counts.items()),
        )


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
        self.staleness = StalenessHistogram()
        r.register(self.staleness)
        self.groups_applied = Counter(
            "trustbatch_groups_applied", "Groups that ended in an optimizer step.", registry=r
        )
        self.groups_dropped = Counter(
            "trustbatch_groups_dropped", "Groups that ended without being trained on.", ["reason"], registry=r
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
            "trustbatch_sync_seconds", "Verifying, loading and proving a version.", buckets=_SECONDS, registry=r
        )
        self.pause_seconds = Histogram(
            "trustbatch_sync_pause_seconds", "Generation stood still for a sync.", buckets=_SECONDS, registry=r
        )
        self.syncs = Counter("trustbatch_syncs", "Versions loaded, by the way they came.", ["way"], registry=r)
        self.sync_failures = Counter("trustbatch_sync_failures", "Versions refused.", ["reason"], registry=r)
        self.floor = Gauge(
            "trustbatch_proof_max_nats",
            "Largest difference between the served version and its probe, nats.",
            registry=r,
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


def serve(registry: CollectorRegistry, host: str, port: int) -> tuple[WSGIServer, Thread, str]:
    """Starts the endpoint; port 0 takes a free one. Returns server, thread and the address to scrape."""
    server, thread = start_http_server(port, addr=host, registry=registry)
    return server, thread, f"http://{host}:{server.server_port}/metrics"
