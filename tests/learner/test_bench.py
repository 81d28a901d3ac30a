"""The benchmark runs where training does, with nothing else there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

import learner.bench
import learner.bench_meter
import learner.bench_patches
from learner import bench_overhead, bench_step, bench_work
from learner.batch import batch_rewards, build_step
from learner.bench_work import Work
from learner.model import PolicyModel
from learner.objective.registry import OBJECTIVES, build
from learner.objectives import Objectives
from learner.ranks import ALONE
from learner.step import prepare

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
    assert one["prepass_share"] == 0
    assert 0 < several["prepass_share"] < 1


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


SMALL = Work("demo", 400, sequences=8, group_size=4, prompt=8, shortest=12, longest=64, seed=0, rounds=1, device="cpu")


def test_a_step_is_measured_beside_the_padded_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner.bench_meter, "SQUARE", 64)
    found = {variant: bench_step.measure_one(SMALL, variant) for variant in bench_step.VARIANTS}
    assert found["packed"]["prepass_share"] < 0.01 < found["packed, in pieces"]["prepass_share"]
    assert found["packed, in pieces"]["micro_batches"] >= bench_step.PIECES
    assert found["padded"]["packing_efficiency"] == pytest.approx(sum(SMALL.lengths()) / (8 * 64))
    for row in found.values():
        assert row["mfu"] > 0
        assert row["tokens_per_s"] * row["seconds"] == pytest.approx(sum(SMALL.lengths()))


def test_the_padded_loss_is_that_of_the_packed_step() -> None:
    module = SMALL.model().double()
    cut = [(g.prompt_ids, t) for g in SMALL.groups() for t in g.trajectories]
    trained = sum(t.length for _, t in cut)
    padded = bench_work.padded_loss(module, cut, SMALL.longest, trained, torch.device("cpu"))
    groups = SMALL.groups()
    batch = build_step(groups, batch_rewards(groups), "group_mean", 10_000)
    [m] = batch.micro_batches
    advantages = replace(batch, micro_batches=(replace(m, advantages=2 * m.advantages),))
    k3 = Objectives(build("p3o", {"kl_estimator": "k3"}))
    packed = prepare(PolicyModel(module), advantages, k3, {}, ALONE)
    assert padded.item() == pytest.approx(packed.token_loss.loss.item(), rel=1e-6)


def test_a_table_has_a_row_for_every_variant_and_odd_lengths_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"tokens_per_s": 200.0, "seconds": 2.0, "memory_bytes": 10**7, "mfu": 0.5, "matrix_flops": 9e10}
    row |= {"packing_efficiency": 0.9, "prepass_share": 0.0}
    padded = row | {"tokens_per_s": 50.0, "memory_bytes": 10**8}
    told = {**asdict(SMALL), "device": "cpu", "threads": 1, "torch": "2", "tokens": 400, "filled": 0.3}
    lines = bench_step.table(told | {"variants": {"padded": padded, "packed": row}}).splitlines()
    assert "4.00 x" in lines[3]
    assert "1/10.0" in lines[3]
    with pytest.raises(SystemExit):
        learner.bench.main(["learner", "--prompt", "64"])
    assert "prompt < shortest <= longest" in capsys.readouterr().err


def test_what_the_learner_does_beside_the_model_is_measured_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_overhead, "WORKS", {"small": SMALL})
    told = bench_overhead.measure()
    assert told["small"]["seconds"].keys() == {"decode", "batch", "objective", "record", "model"}
    assert all(seconds > 0 for seconds in told["small"]["seconds"].values())
    assert 0 < told["small"]["share"] < 1
    assert "beside the model" in bench_overhead.table(told)
