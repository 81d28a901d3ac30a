"""The demo learns, and what it shows is learning: without a learning rate, or without true rewards, it does not."""

from collections.abc import Callable

import pytest

from tests.system.conftest import Run

pytestmark = [pytest.mark.vllm, pytest.mark.system, pytest.mark.timeout(1200)]


def test_the_demo_doubles_its_accuracy_and_passes_0_6(make_run: Callable[..., Run]) -> None:
    run = make_run("demo", "learner.target_heldout_accuracy=0.63", "evaluation.every=20")
    summary = run.finish(1100)
    assert summary["heldout_accuracy_end"] >= 0.6
    assert summary["heldout_accuracy_end"] >= 2 * summary["heldout_accuracy_start"]
    assert summary["steps"] <= 300
    assert (summary["groups_lost"], summary["groups_applied_twice"]) == (0, 0)
    assert summary["groups_applied"] == 32 * summary["steps"]
    assert summary["policy_version"] >= summary["steps"]
    assert summary["staleness_max"] <= 4
    assert summary["staleness_mean"] > 0, "the learner trained on stale data"
    assert 0 < summary["token_ess_min"] < 1
    assert summary["numerics_floor_max_nats"] < 1e-3
    assert summary["wall_seconds"] > 0
    for name in ("config.yaml", "plot.png", "summary.json", "model/config.json", "model/tokenizer.json"):
        assert (run.folder / name).stat().st_size > 0
    assert (run.folder / "model" / "model.safetensors").stat().st_size > 10**6
    questions = {row["prompt_index"] for row in run.rows("dropped.jsonl")}
    assert len(questions) == sum(summary["groups_dropped"].values())
    assert str(run.folder) in run.output
    assert "http://" in run.output


def test_with_learning_rate_0_nothing_improves(make_run: Callable[..., Run]) -> None:
    run = make_run(
        "still",
        "rollout.engine={kind: transformers, device: cpu}",
        "learner.groups_per_batch=8",
        "learner.learning_rate=0",
        "learner.steps=12",
        "evaluation.every=6",
    )
    summary = run.finish(900)
    assert summary["steps"] == 12
    accuracies = {row["accuracy"] for row in run.rows("evaluations.jsonl")}
    assert len(accuracies) == 1, f"the weights stand still, so must greedy accuracy: {accuracies}"
    assert min(row["token_ess"] for row in run.rows()) > 0.9999, "stale versions of the same weights are on-policy"


def test_with_shuffled_rewards_nothing_improves(make_run: Callable[..., Run]) -> None:
    run = make_run("shuffled", "learner.shuffle_rewards=true", "learner.steps=30", "evaluation.every=15")
    summary = run.finish(900)
    start = summary["heldout_accuracy_start"]
    assert all(row["accuracy"] <= start + 0.03 for row in run.rows("evaluations.jsonl"))
