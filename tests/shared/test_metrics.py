"""What the learner's endpoint says."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.metrics import LearnerMetrics


def samples(metrics: LearnerMetrics) -> dict[tuple[str, str], float]:
    """Value by (name, le)."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {(s.name, s.labels.get("le", "")): s.value for family in families for s in family.samples}


def test_staleness_is_counted_per_token_in_cumulative_buckets() -> None:
    metrics = LearnerMetrics()
    metrics.staleness.observe([0, 3, 300], [10, 5, 1])
    metrics.staleness.observe([3], [2])
    found = samples(metrics)
    name = "trustbatch_staleness_versions"
    upto = [found[f"{name}_bucket", le] for le in ("0.0", "2.0", "4.0", "256.0", "+Inf")]
    assert upto == [10, 10, 17, 17, 18]
    assert (found[f"{name}_count", ""], found[f"{name}_sum", ""]) == (18, 3 * 7 + 300)
