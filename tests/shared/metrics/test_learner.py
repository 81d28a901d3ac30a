"""What the learner's endpoint says."""

import math

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import LearnerMetrics, RolloutMetrics
from shared.records import Dropped, StepRecord
from tests.services.rows import step


def samples(metrics: LearnerMetrics) -> dict[tuple[str, str], float]:
    """Value by (name, le)."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, s.labels.get("le", "")): s.value for family in families for s in family.samples}


def test_the_parts_of_staleness_are_counted_by_part() -> None:
    metrics = LearnerMetrics()
    parts = {"lag": np.array([2, 2]), "flight": np.array([0, 1]), "queue": np.array([3, 0])}
    metrics.count_staleness(np.array([5, 3]), parts)
    name = "trustbatch_staleness_part_versions_sum"
    found = {part: metrics.registry.get_sample_value(name, {"part": part}) for part in parts}
    assert found == {"lag": 4, "flight": 1, "queue": 3}
    assert metrics.registry.get_sample_value("trustbatch_staleness_versions_sum") == 8


def test_a_dropped_group_is_counted_by_reason_with_what_is_known_of_it() -> None:
    metrics = LearnerMetrics()
    metrics.drop(Dropped(1, "too_stale", length_mean=40.0, reward_mean=0.25, at=1.0, staleness=7))
    metrics.drop(Dropped(2, "too_stale", length_mean=20.0, reward_mean=math.nan, at=1.0, staleness=5))
    metrics.drop(Dropped(-1, "undecodable", length_mean=None, reward_mean=None, at=1.0))

    def value(name: str, reason: str) -> float | None:
        return metrics.registry.get_sample_value(f"trustbatch_{name}", {"reason": reason})

    assert (value("groups_dropped_total", "too_stale"), value("groups_dropped_total", "undecodable")) == (2, 1)
    assert value("dropped_staleness_versions_sum", "too_stale") == 12
    assert value("dropped_completion_tokens_sum", "too_stale") == 60
    assert (value("dropped_reward_sum", "too_stale"), value("dropped_reward_count", "too_stale")) == (0.25, 1)
    assert value("dropped_staleness_versions_count", "undecodable") is None


def test_an_arm_is_shown_while_it_has_groups() -> None:
    metrics = LearnerMetrics()
    arm = dict.fromkeys(("length_mean", "staleness_mean", "token_ess", "sequence_ess", "kl", "capped_share"), 0.5)
    arm |= {"reward_mean": 0.75, "tokens": 9, "groups": 3}
    control = step(1) | {"by_arm": {"control": arm, "lag 4": {**arm, "kl": None}}}
    metrics.observe(StepRecord(**control))
    metrics.observe(StepRecord(**{**control, "by_arm": {"lag 4": arm}}))

    def value(name: str, of: str) -> float | None:
        return metrics.registry.get_sample_value(f"trustbatch_arm_{name}", {"arm": of})

    assert (value("reward_mean", "control"), value("reward_mean", "lag 4")) == (None, 0.75)
    assert (value("groups_total", "control"), value("groups_total", "lag 4")) == (3, 6)


def test_staleness_is_counted_per_token_in_cumulative_buckets() -> None:
    metrics = LearnerMetrics()
    metrics.staleness.observe([0, 3, 300], [10, 5, 1])
    metrics.staleness.observe([3], [2])
    found = samples(metrics)
    name = "trustbatch_staleness_versions"
    upto = [found[f"{name}_bucket", le] for le in ("0.0", "2.0", "4.0", "256.0", "+Inf")]
    assert upto == [10, 10, 17, 17, 18]
    assert (found[f"{name}_count", ""], found[f"{name}_sum", ""]) == (18, 3 * 7 + 300)


def test_a_skipped_step_is_counted_apart() -> None:
    metrics = LearnerMetrics()
    metrics.observe(StepRecord(**step(1)))
    metrics.observe(StepRecord(**step(2, skipped="loss is nan")))
    found = samples(metrics)
    assert (found["trustbatch_steps_total", ""], found["trustbatch_steps_skipped_total", ""]) == (1, 1)


def test_what_is_alarming_from_its_first_count_on_begins_at_zero() -> None:
    lost, failed = LearnerMetrics().registry, RolloutMetrics().registry
    assert lost.get_sample_value("trustbatch_groups_lost_total", {"cause": "forgotten"}) == 0
    assert failed.get_sample_value("trustbatch_sync_failures_total", {"reason": "unproven"}) == 0
    assert failed.get_sample_value("trustbatch_rollout_policy_version") == -1, "no version is proven yet"


def test_what_was_trained_on_can_be_compared_with_what_was_dropped() -> None:
    metrics = LearnerMetrics()
    metrics.count_trained([(10.0, 1.0), (30.0, 0.5)])
    metrics.drop(Dropped(1, "bad_tokens", length_mean=90.0, reward_mean=0.0, at=1.0), dead_letter=True)
    metrics.drop(Dropped(2, "too_stale", length_mean=70.0, reward_mean=0.0, at=1.0))
    value = metrics.registry.get_sample_value
    assert value("trustbatch_trained_completion_tokens_sum") == 40
    assert value("trustbatch_trained_reward_sum") == 1.5
    assert value("trustbatch_dropped_completion_tokens_sum", {"reason": "too_stale"}) == 70
    assert value("trustbatch_groups_dead_lettered_total", {"reason": "bad_tokens"}) == 1
    assert value("trustbatch_groups_dead_lettered_total", {"reason": "too_stale"}) is None


def test_a_server_is_shown_while_it_has_tokens_in_a_step() -> None:
    metrics = LearnerMetrics()
    part = {"token_ess": 0.5, "weight_share": 0.25, "kl": math.nan}
    metrics.observe(StepRecord(**{**step(1), "by_server": {"r0": part, "r1": part}, "by_position": {"0-15": part}}))
    metrics.observe(StepRecord(**{**step(2), "by_server": {"r1": part}}))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"trustbatch_{name}", labels)

    assert (value("server_token_ess", server="r0"), value("server_token_ess", server="r1")) == (None, 0.5)
    assert value("server_weight_share", server="r1") == 0.25
    assert value("position_token_ess", tokens="0-15") is None


def test_a_skipped_step_is_counted_as_such() -> None:
    metrics = LearnerMetrics()
    metrics.observe(StepRecord(**{**step(1), "skipped": "non-finite ESS", "entropy_mean": 1.5}))
    value = metrics.registry.get_sample_value
    assert (value("trustbatch_steps_total"), value("trustbatch_steps_skipped_total")) == (0, 1)
    assert value("trustbatch_entropy_mean_nats") == 1.5


def test_the_backlog_is_told_in_groups_bytes_and_seconds() -> None:
    metrics = LearnerMetrics()
    metrics.observe_backlog(7, 4096, 2.5, 30.0)
    metrics.observe_backlog(8, 4096, None, None)
    names = ("backlog_groups", "backlog_bytes", "backlog_oldest_seconds", "backlog_drain_seconds")
    assert [metrics.registry.get_sample_value(f"trustbatch_{name}") for name in names] == [8, 4096, 0, 30]


def test_log_ratios_are_a_histogram_of_every_token_seen() -> None:
    metrics = LearnerMetrics()
    counts = [1] * 20 + [100] + [0] * 19 + [2]
    for number in (1, 2):
        metrics.observe(StepRecord(**{**step(number), "log_ratio_counts": counts, "k1": 0.01}))
    found = samples(metrics)
    bounds = ("-4.0", "-0.0009765625", "0.0009765625", "4.0", "+Inf")
    upto = [found["trustbatch_log_ratio_nats_bucket", le] for le in bounds]
    assert upto == [2, 40, 240, 240, 244]
