"""The benchmark runs where training does, with nothing else there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import learner.bench
import learner.bench_patches
from learner.objective.registry import OBJECTIVES

pytestmark = pytest.mark.system


def test_every_variant_is_compared_with_the_step_without_shadows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = learner.bench.SMALL_QWEN3.model_copy(update={"hidden_size": 32, "num_hidden_layers": 1})
    monkeypatch.setattr(learner.bench, "SMALL_QWEN3", small)
    monkeypatch.setattr(learner.bench, "LONGEST", 32)
    learner.bench.main(["shadows", "--device", "cpu", "--rounds", "1"])
    told = json.loads(capsys.readouterr().out)
    assert (told["all_shadows"], told["threads"]) == (len(OBJECTIVES), torch.get_num_threads())
    assert told["by_micro_batches"].keys() > {"1"}
    for found in told["by_micro_batches"].values():
        assert found["seconds"] > 0
        assert found["ratio"].keys() == learner.bench.VARIANTS.keys() - {"none"}
        assert all(ratio > 0 for ratio in found["ratio"].values())


def test_what_is_measured_of_a_step_is_told_beside_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    learner.bench.main(["measures", "--device", "cpu", "--rounds", "1"])
    told = json.loads(capsys.readouterr().out)
    assert told["milliseconds"].keys() == {"step", "update_norm", "record", "examples", "split"}
    assert all(taken > 0 for taken in told["milliseconds"].values())
    assert told["share_of_the_step"] > 0


def test_the_first_pass_is_a_part_of_the_step_where_it_keeps_no_graph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner.bench, "LONGEST", 32)
    learner.bench.main(["phases", "--device", "cpu", "--rounds", "1"])
    one, several = json.loads(capsys.readouterr().out)["by_micro_batches"].values()
    assert one["first_pass_share"] == 0
    assert 0 < several["first_pass_share"] < 1


def test_it_needs_no_redis() -> None:
    code = "import sys, learner.bench; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_patches_are_measured_over_real_steps_and_are_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(learner.bench_patches, "MODEL", learner.bench.SMALL_QWEN3.model_copy(update={"head_dim": 32}))
    learner.bench.main(["patches", "--device", "cpu", "--rounds", "2", "--json"])
    told = json.loads(capsys.readouterr().out)
    found = told["by_learning_rate"]
    assert all(rate["identical"] and len(rate["versions"]) == 2 for rate in found.values())
    assert found["1e-06"]["share_max"] <= 0.03
    assert found["1e-05"]["share_max"] <= 0.13
    assert "NO" not in learner.bench_patches.table(told)
