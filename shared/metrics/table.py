"""Every metric of every process: name, type, unit, labels, meaning. `python -m shared.metrics` writes the page of it.

Names are exported with `trustbatch_` before them; counters with `_total` behind. `field` is the number of a history row
that a gauge shows: a field of `StepRecord`, or `by_server.token_ess` for one of a part of the step. The history and the
trackers know it by that name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from shared.histogram import LOG_RATIO_EDGES, VERSIONS
from shared.records import StepRecord

PREFIX = "trustbatch_"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PAUSES = tuple(step * 10**power for power in range(-3, 1) for step in (1, 1.5, 2, 3, 4, 6, 8))  # 1 ms .. 8 s
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_REWARDS = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1, 2, 10)

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: Kind
    unit: str  # '' for a plain number; share: in [0, 1]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    field: str = ""

    @property
    def exported(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name + ("_total" if self.kind == "counter" else "")


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", unit, text, labels)


def _count(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(name, "counter", unit, text, labels)


def _spread(name: str, unit: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, "histogram", unit, text, labels, buckets)


def _row(field: str, unit: str, text: str, name: str = "") -> Metric:
    return Metric(name or field, "gauge", unit, text, field=field)


STEP = (
    _row("step", "steps", "Optimizer steps in this lineage."),
    _row("computed_tokens", "tokens", "Tokens that the model computed in a pass, prompts included."),
    _row("micro_batches", "", "Micro-batches of the step."),
    _row("packing_efficiency", "share", "Share of the micro-batches' token budgets that is used."),
    _row("prepass_s", "seconds", "Forward passes of the step that served its statistics alone.", "prepass_seconds"),
    _row("reward_mean", "", "Mean reward of the step's trajectories."),
    _row("signal_share", "share", "Share of groups with unequal rewards."),
    _row("length_mean", "tokens", "Mean completion length, tokens.", "completion_tokens_mean"),
    _row("truncated_share", "share", "Share of completions cut by max_tokens."),
    _row("token_ess", "share", "Normalized effective sample size over the step's tokens, in [1/n, 1]."),
    _row("sequence_ess", "share", "The same over completions, each with the ratio of the whole completion."),
    _row("log1m_token_ess", "", "log(1 - token_ess): moves while token_ess still reads 1.00."),
    _row("chi2", "", "1 / token_ess - 1, estimate of chi2(policy || behavior)."),
    _row("ratio_min", "", "Smallest policy / behavior ratio of a token, before any cap."),
    _row("ratio_p1", "", "Ratio that 1 % of the tokens are below."),
    _row("ratio_p50", "", "Median ratio of the tokens."),
    _row("ratio_p99", "", "Ratio that 1 % of the tokens are above."),
    _row("ratio_max", "", "Largest policy / behavior ratio of a token, before any cap."),
    _row("log_ratio_abs_max", "nats", "Largest |log ratio| of a token, nats.", "log_ratio_abs_max_nats"),
    _row("largest_weight_share", "share", "Largest ratio of a token / sum of all."),
    _row("top_1_percent_mass", "share", "Sum of the largest hundredth of the ratios / sum of all."),
    _row("kl", "nats", "Unbiased estimate of KL(policy || behavior) per token, nats.", "kl_nats"),
    _row("k1", "nats", "Mean of -log_ratio per token, nats.", "k1_nats"),
    _row("k2", "nats", "Mean of log_ratio^2 / 2 per token, nats.", "k2_nats"),
    _row("k3", "nats", "Mean of log_ratio + 1/ratio - 1 per token, nats.", "k3_nats"),
    _row("capped_share", "share", "Share of tokens that the objective capped, clipped or masked."),
    _row("weight_lost", "share", "What the objective took off the ratios of those tokens / sum of all ratios."),
    _row("zero_weight_share", "share", "Share of tokens without a score term."),
    _row("kl_weight", "", "Mean weight of the pull to the behavior policy (or a reference); 0 where there is none."),
    _row("entropy_mean", "nats", "Mean entropy of the policy; set where it is computed.", "entropy_mean_nats"),
    _row("staleness_mean", "versions", "Mean staleness of the step's tokens, versions.", "staleness_mean_versions"),
    _row("staleness_max", "versions", "Largest staleness of the step's tokens, versions.", "staleness_max_versions"),
    _row("lag_mean", "versions", "Part of it that was asked for.", "staleness_lag_mean_versions"),
    _row("lag_max", "versions", "Largest part that was asked for.", "staleness_lag_max_versions"),
    _row("flight_mean", "versions", "Part beyond the lag, before the append.", "staleness_flight_mean_versions"),
    _row("flight_max", "versions", "Largest part beyond the lag, before the append.", "staleness_flight_max_versions"),
    _row("queue_mean", "versions", "Part that came between append and training.", "staleness_queue_mean_versions"),
    _row("queue_max", "versions", "Largest part between append and training.", "staleness_queue_max_versions"),
    _row("floor_max_nats", "nats", "Largest |log ratio| at staleness 0, before the update.", "numerics_floor_max_nats"),
    _row("floor_mean_nats", "nats", "Mean |log ratio| at staleness 0, before the update.", "numerics_floor_mean_nats"),
    _row("floor_token_ess", "share", "token_ess over the tokens at staleness 0 alone.", "numerics_floor_token_ess"),
    _row("engine_nats", "nats", "On a sample: mean |learner at the version that drew it - engine|, nats."),
    _row("drift_nats", "nats", "On the same tokens: mean |learner now - learner at that version|, nats."),
    _row("split_staleness", "versions", "Staleness of that sample, versions.", "split_staleness_versions"),
    _row("loss", "", "Objective's value."),
    _row("loss_score", "", "Part of the loss with the advantages."),
    _row("loss_kl", "", "Part of the loss that pulls to the behavior policy or a reference."),
    _row("loss_entropy", "", "Part of the loss that rewards entropy."),
    _row("grad_norm", "", "Gradient norm before clipping."),
    _row("update_norm", "", "L2 norm of the weights' change."),
    _row("learning_rate", "", "Learning rate of the step."),
    _row("busy_share", "share", "Share of the time since the step before that went into this one."),
    _row("wait_share", "share", "Share of that time spent on waiting for groups."),
)
"""Gauges of the newest step."""

_PART = (
    _row("tokens", "tokens", "Trained tokens."),
    _row("token_ess", "share", "Normalized effective sample size over tokens."),
    _row("sequence_ess", "share", "The same over completions, each where its oldest (or last) token is."),
    _row("ratio_p50", "", "Median ratio."),
    _row("ratio_max", "", "Largest ratio."),
    _row("kl", "nats", "Unbiased estimate of KL(policy || behavior) per token, nats.", "kl_nats"),
    _row("top_1_percent_mass", "share", "Tail: sum of its largest hundredth of the ratios / sum of its ratios."),
    _row("weight_share", "share", "Sum of its ratios / sum of all ratios of the step."),
    _row("capped_share", "share", "Share of tokens that the objective capped, clipped or masked."),
)
_ARM = (
    _row("reward_mean", "", "Mean reward of its trajectories."),
    _row("length_mean", "tokens", "Mean completion length, tokens."),
    _row("staleness_mean", "versions", "Mean staleness of its tokens, versions."),
    *(replace(part, name=part.field) for part in _PART),
)
_SHADOW = (
    _row("loss", "", "Loss."),
    _row("cut_share", "share", "Share of tokens clipped, capped or masked."),
    _row("zero_weight_share", "share", "Share of tokens without a score term."),
    _row("weight_ess", "share", "Normalized effective sample size of the tokens' weights."),
    _row("step_factor", "", "Factor of the learning rate."),
    _row("cosine", "", "Cosine between its gradient and the one taken, at the last comparison."),
)


def _parts(of: tuple[Metric, ...], prefix: str, field: str, label: str, what: str) -> tuple[Metric, ...]:
    return tuple(
        replace(m, name=f"{prefix}_{m.name}", text=f"{m.text} {what}", labels=(label,), field=f"{field}.{m.field}")
        for m in of
    )


PARTS = (
    *_parts(_PART, "staleness", "by_staleness", "versions", "Of each staleness bucket."),
    *_parts(_PART, "environment", "by_environment", "environment", "Of each environment."),
    *_parts(_PART, "server", "by_server", "server", "Of each rollout server, the rest as others."),
    *_parts(_PART, "position", "by_position", "tokens", "Of each range of positions in the completion."),
    *_parts(_ARM, "arm", "by_arm", "arm", "Of each arm, by the lag asked for."),
    *_parts(_SHADOW, "shadow", "shadows", "objective", "Of a shadow objective."),
)
"""Gauges of parts of the newest step."""

_REDIS = (
    _count("redis_outages", "", "Times that Redis was away, or had lost data."),
    _count("redis_retries", "", "Commands that were sent to Redis again, after an outage."),
    _count("redis_left_out", "", "Things left untold because Redis refused them, as at maxmemory."),
)

LEARNER = (
    *STEP,
    *PARTS,
    *_REDIS,
    _count("steps", "steps", "Optimizer steps taken."),
    _count("steps_skipped", "steps", "Optimizer steps that were not finite, so that the weights did not change."),
    _count("arm_groups", "groups", "Groups trained on, by arm.", "arm"),
    _spread(
        "staleness_versions",
        "versions",
        "Versions between drawing a token and training on it, per trained token.",
        VERSIONS,
    ),
    _spread(
        "staleness_part_versions",
        "versions",
        "The parts of it: lag (asked for), flight (until the group was appended), queue (until it was trained on).",
        VERSIONS,
        "part",
    ),
    _spread("log_ratio_nats", "nats", "Log ratio of every token that a step saw, nats.", LOG_RATIO_EDGES),
    _count("groups_applied", "groups", "Groups that ended in an optimizer step."),
    _count("groups_dropped", "groups", "Groups that ended without being trained on.", "reason"),
    _count("groups_dead_lettered", "groups", "Of these, groups that are kept as dead letters.", "reason"),
    _count("groups_lost", "groups", "Acknowledged groups that Redis lost, by how.", "cause"),
    _spread(
        "dropped_staleness_versions",
        "versions",
        "Versions that the oldest token of a dropped group was behind, by reason.",
        VERSIONS,
        "reason",
    ),
    _spread("dropped_completion_tokens", "tokens", "Mean completion length of a dropped group.", _TOKENS, "reason"),
    _spread("dropped_reward", "", "Mean reward of a dropped group, by reason.", _REWARDS, "reason"),
    _spread("trained_completion_tokens", "tokens", "Mean completion length of a group that was trained on.", _TOKENS),
    _spread("trained_reward", "", "Mean reward of a group that was trained on.", _REWARDS),
    _gauge("staleness_credit_versions", "versions", "Versions that rollout servers may be ahead of training."),
    _count("tokens_trained", "tokens", "Tokens with a gradient."),
    _count("learner_wait_seconds", "seconds", "Time spent waiting for groups."),
    _spread("step_seconds", "seconds", "Forward, backward and optimizer of a step.", _SECONDS),
    _spread("publish_seconds", "seconds", "Writing and announcing a version.", _SECONDS),
    _spread("patch_encode_seconds", "seconds", "Making a patch, whether it was small enough or not.", _SECONDS),
    _spread("split_seconds", "seconds", "Splitting the log ratios of a sample into engine and drift.", _SECONDS),
    _count("split_failures", "", "Samples of which no split could be made."),
    _count("published_bytes", "bytes", "Weights put into the store, by how: whole or patch.", "kind"),
    _count("retention_failures", "", "Publishes after which versions that nobody needs could not be deleted."),
    _count("transfers", "", "Servers that a version was sent to over the wire.", "outcome"),
    _spread("transfer_seconds", "seconds", "Sending a version, invitation to last receipt.", _SECONDS),
    _count("checkpoints", "", "Durable checkpoints written."),
    _gauge("policy_version", "versions", "Newest published version."),
    _gauge("backlog_groups", "groups", "Groups in the stream not yet applied."),
    _gauge("backlog_bytes", "bytes", "Payload bytes in the stream."),
    _gauge("backlog_oldest_seconds", "seconds", "Since the oldest group that was never read was appended; 0: none."),
    _gauge("backlog_drain_seconds", "seconds", "How long the backlog lasts at the pace of the newest steps."),
    _count("tracker_rows", "steps", "Steps that the tracker was given."),
    _count("tracker_failures", "", "Times that the tracker failed; it is tried again with the next checkpoint."),
)

ROLLOUT = (
    *_REDIS,
    _count("rollout_groups", "groups", "Groups that Redis acknowledged."),
    _count("rollout_groups_discarded", "groups", "Generated groups that were not appended.", "reason"),
    _count("rollout_groups_retried", "groups", "Groups given back after a failure, to be generated again.", "reason"),
    _count("rollout_appends_resent", "groups", "Appends sent again, their first answer being lost."),
    _count("rollout_tokens", "tokens", "Tokens drawn for training."),
    _spread("rollout_group_seconds", "seconds", "From a prompt to its scored group.", _SECONDS),
    _count("environment_failures", "", "Scorer or environment failures.", "reason"),
    _gauge("rollout_groups_in_flight", "groups", "Groups being generated."),
    _gauge("rollout_busy_share", "share", "Share of the last minute with groups in flight and the engine not paused."),
    _count("rollout_busy_seconds", "seconds", "Time with groups in flight and the engine not paused."),
    _gauge("rollout_policy_version", "versions", "Version served, proven; -1: none."),
    _spread("sync_seconds", "seconds", "From looking for a version to serving it, proven.", _SECONDS),
    _spread(
        "sync_stage_seconds",
        "seconds",
        "Parts of a sync: fetch (and verify), stage, wait (for groups in flight), load, receive, probe, tensors.",
        _SECONDS,
        "stage",
    ),
    _spread("sync_pause_seconds", "seconds", "Generation stood still for a sync.", _PAUSES),
    _count("syncs", "", "Versions loaded, by the way they came.", "way"),
    _count("sync_failures", "", "Versions refused.", "reason"),
    _gauge("rollout_refused_version", "versions", "Version that this server cannot prove; -1: none."),
    _gauge(
        "rollout_numerics_floor_max_nats", "nats", "Largest difference between the served version and its probe, nats."
    ),
    _gauge(
        "rollout_numerics_floor_mean_nats", "nats", "Mean |difference| between the served version and its probe, nats."
    ),
    _gauge(
        "rollout_numerics_floor_token_ess",
        "share",
        "Normalized effective sample size over the probe's tokens: that of staleness 0.",
    ),
    _gauge("rollout_lag_asked_versions", "versions", "Versions behind the newest that it is asked to serve."),
    _gauge("rollout_lag_served_versions", "versions", "Versions behind the newest that it serves."),
    _gauge("rollout_tensors_unchecked", "", "Loaded tensors of which only the probe says something."),
    _count("rollout_wait_seconds", "seconds", "Time without credit, by what it waited for.", "reason"),
)

CONTROL_PLANE = (
    _count("http_requests", "", "Requests.", "method", "route", "status"),
    _gauge("redis_up", "", "1 while Redis answers."),
    _gauge("redis_memory_bytes", "bytes", "Memory that Redis uses."),
    _gauge("redis_memory_limit_bytes", "bytes", "Memory that Redis may use (maxmemory); 0: no limit."),
    _gauge("members", "", "Living components.", "kind"),
    _gauge("latest_policy_version", "versions", "Newest published version."),
    _gauge("stream_groups", "groups", "Groups in the stream, applied or not."),
    _gauge("stream_bytes", "bytes", "Payload bytes in the stream."),
    _gauge(
        "stream_limit_bytes", "bytes", "Payload bytes that the stream may hold: admission.max_bytes, or what is wanted."
    ),
    _gauge("dead_letters", "", "Entries in the dead letters."),
    _gauge("dead_letters_ever", "", "Entries that ever became dead letters, those dropped or requeued since included."),
    _gauge("run_phase", "", "1 for the run's phase, 0 for others.", "phase"),
    _gauge("paused", "", "1 while the operator wants the run to stand still."),
    _gauge("last_step_timestamp_seconds", "seconds", "When the newest optimizer step was taken, unix seconds."),
    _gauge(
        "controller_level", "", "0 watching, 1 narrowed, 2 synced, 3 paused by the controller; NaN where it is off."
    ),
    _gauge("controller_lag_versions", "versions", "Largest lag that the controller lets servers have."),
    _gauge("controller_max_staleness_versions", "versions", "Versions that the controller lets servers draw ahead."),
    _gauge("controller_actions", "", "What the controller has done since the run began, by kind.", "kind"),
    _gauge("desired_rollout_servers", "", "Rollout servers that the learner could use; 0 once the run has ended."),
)

PROCESSES = {"learner": LEARNER, "rollout server": ROLLOUT, "control plane": CONTROL_PLANE}
STEP_TEXTS: dict[str, str] = {metric.field: metric.text for metric in STEP}
"""What each number of a StepRecord means."""

assert {metric.field.split(".")[0] for metric in (*STEP, *PARTS)} <= {f.name for f in fields(StepRecord)}
