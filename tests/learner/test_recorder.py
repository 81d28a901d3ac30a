"""The flight recorder on a real learner: what is kept, for how long, and what a disk that refuses may cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner.recorded import main as record
from learner.recorder import eviction_order
from learner.recording import FOLDER, RecordedFile, Recording, read, recorded_files
from shared.codec import encode_group
from shared.config.load import dump_config
from shared.errors import TrainingError
from shared.types import Group
from tests.learner.conftest import MakeWorld
from tests.learner.world import World


def folder(world: World) -> Path:
    return world.config.run.folder / FOLDER


def recordings(world: World) -> list[Recording]:
    return [read(folder(world) / file.name) for file in recorded_files(folder(world))]


def put_groups(world: World, count: int) -> list[Group]:
    groups = [world.group(index) for index in world.lease(count)]
    for group in groups:
        world.put(group)
    return groups


def file(step: int, size: int = 1, *, epoch: int = 1, skipped: bool = False) -> RecordedFile:
    return RecordedFile(epoch, step, skipped, False, size)


def test_a_step_is_kept_with_the_very_bytes_of_its_groups_and_what_became_of_it(world: World) -> None:
    learner = world.learner()
    groups = put_groups(world, 4)
    learner.iterate()
    world.append(4, version=0)
    learner.iterate()
    first, second = recordings(world)
    assert sorted(first.groups) == sorted(encode_group(group) for group in groups)
    rows = world.lines("history.jsonl")
    for recording, row in zip((first, second), rows, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "policy_version"):
            assert getattr(recording, name) == row[name]
        assert recording.statistics["token_ess"] == row["token_ess"]
        assert len(recording.tokens["policy_logprobs"]) == row["tokens"]
    assert (first.staleness, second.staleness) == ({0: 0}, {0: 1})
    assert (first.objective, first.first_of_batch, first.pass_number) == ("p3o", True, 0)
    assert "entropy" not in first.tokens


def test_every_pass_is_recorded_with_what_objectives_were_given(make_world: MakeWorld) -> None:
    world = make_world(
        "learner.passes=2", "learner.minibatches=2", "learner.publish_every=4", "learner.checkpoint_every=4",
        "learner.steps=8", "learner.objective.name=decoupled_ppo", "learner.objective.entropy_weight=0.01",
    )  # fmt: skip
    learner = world.learner()
    world.append(4)
    learner.iterate()
    kept = recordings(world)
    assert [(r.step, r.pass_number, r.first_of_batch) for r in kept] == [
        (1, 0, True), (2, 0, False), (3, 1, False), (4, 1, False)
    ]  # fmt: skip
    assert np.array_equal(kept[0].tokens["proximal_logprobs"], kept[2].tokens["proximal_logprobs"])
    assert not np.array_equal(kept[2].tokens["proximal_logprobs"], kept[2].tokens["policy_logprobs"])
    assert kept[0].tokens["entropy"].dtype == np.float32
    assert kept[0].knobs == {"entropy_weight": 0.01}


def test_the_bound_holds_over_many_steps_and_the_newest_stay(make_world: MakeWorld) -> None:
    world = make_world("learner.record_bytes=20000")
    learner = world.learner()
    for _ in range(8):
        world.append(4)
        learner.iterate()
        assert sum(path.stat().st_size for path in folder(world).iterdir()) <= 20_000
    steps = [f.step for f in recorded_files(folder(world))]
    assert 2 <= len(steps) < 8
    assert steps == list(range(9 - len(steps), 9))


def test_only_every_so_many_steps_are_recorded_if_asked_for(make_world: MakeWorld) -> None:
    world = make_world("learner.record_every=3")
    learner = world.learner()
    for _ in range(6):
        world.append(4)
        learner.iterate()
    assert [f.step for f in recorded_files(folder(world))] == [3, 6]


def test_a_bound_of_zero_records_nothing(make_world: MakeWorld) -> None:
    world = make_world("learner.record_bytes=0")
    learner = world.learner()
    world.append(4)
    learner.iterate()
    assert not folder(world).exists()


def test_a_run_that_meets_non_finite_steps_ends_with_the_reason_and_the_offending_group_on_record(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world("learner.max_nonfinite_steps=2", "learner.record_every=100", "learner.record_bytes=30000")
    learner = world.learner()
    monkeypatch.setattr("learner.screening._untruth", lambda trajectory: None)  # else it never gets this far
    bad = []
    for _ in range(2):
        world.append(1)
        bad.append(world.put_changed(lambda t: replace(t, behavior_logprobs=np.full(t.length, -np.inf, np.float32))))
        world.append(2)
    learner.iterate()
    with pytest.raises(TrainingError, match=r"non-finite ESS.*trustbatch replay .*--step 2"):
        learner.iterate()
    kept = recordings(world)
    assert [r.step for r in kept] == [1, 2]
    for recording, index in zip(kept, bad, strict=True):
        assert "non-finite ESS" in recording.skipped
        assert math.isnan(recording.grad_norm)
        assert recording.offending_groups() == (f"{world.config.run.id}:{index}",)
        [group] = [g for g in recording.decoded_groups() if g.prompt_index == index]
        assert np.isneginf(group.trajectories[0].behavior_logprobs).all()
    assert record([str(world.config.run.folder)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"skipped: non-finite ESS (nan) in {world.config.run.id}:{bad[0]}" in shown

    monkeypatch.undo()
    learner = world.learner()
    for _ in range(6):
        world.append(4)
        learner.iterate()
    names = [f.name for f in recorded_files(folder(world))]
    assert names[:2] == ["e0001-s00000001-skipped-abandoned.msgpack", "e0001-s00000002-skipped-abandoned.msgpack"]


def test_skipped_steps_are_removed_last_unless_they_take_half_the_bound() -> None:
    files = [file(1), file(2, skipped=True), file(3), file(4, skipped=True), file(5)]
    assert [f.step for f in eviction_order(files, 100)] == [1, 3, 5, 2, 4]
    assert [f.step for f in eviction_order(files, 3)] == [1, 2, 3, 5, 4]
    assert [f.step for f in eviction_order([file(1, 9, skipped=True), file(2)], 10)] == [2, 1], "the newest counts"


def test_skipped_steps_outlive_later_ones_in_the_folder(make_world: MakeWorld) -> None:
    world = make_world("learner.record_bytes=20000", "learner.max_nonfinite_steps=2")
    learner = world.learner()
    parameters = list(learner.training.parts.policy.named_parameters().values())
    kept = [p.detach().clone() for p in parameters]
    for parameter in parameters:
        parameter.data.fill_(math.nan)
    world.append(4)
    learner.iterate()
    for parameter, good in zip(parameters, kept, strict=True):
        parameter.data.copy_(good)
    for _ in range(8):
        world.append(4)
        learner.iterate()
    files = recorded_files(folder(world))
    assert (files[0].step, files[0].skipped) == (1, True)
    assert files[-1].step == 9
    assert sum(f.bytes for f in files) <= 20_000


def test_what_a_restore_leaves_behind_is_marked_and_steps_stay_unambiguous(world: World) -> None:
    learner = world.learner()
    for _ in range(3):
        world.append(4)
        learner.iterate()
    (folder(world) / "e0001-s00000004.msgpack.partial").write_bytes(b"torn")
    again = world.learner()
    assert again.training.step == 2
    while again.training.step < 3:
        assert again.iterate()
    assert [f.name for f in recorded_files(folder(world))] == [
        "e0001-s00000001.msgpack",
        "e0001-s00000002.msgpack",
        "e0001-s00000003-abandoned.msgpack",
        "e0002-s00000003.msgpack",
    ]
    assert not list(folder(world).glob("*.partial"))


def test_a_disk_that_refuses_costs_the_recording_and_nothing_else(world: World) -> None:
    world.config.run.folder.mkdir(parents=True, exist_ok=True)
    folder(world).write_text("a file where the folder should be")
    learner = world.learner()
    world.append(4)
    assert learner.iterate()
    assert [row["step"] for row in world.lines("history.jsonl")] == [1]


def test_a_step_that_cannot_be_encoded_costs_the_recording_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(recording: object) -> bytes:
        raise ValueError(f"{type(recording).__name__}: too large for one frame")

    monkeypatch.setattr("learner.recorder.encode", refuse)
    learner = world.learner()
    world.append(4)
    assert learner.iterate()
    assert [row["step"] for row in world.lines("history.jsonl")] == [1]


def test_an_operator_changes_the_bound_of_a_live_run(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    learner = world.learner()
    (world.config.run.folder / "config.yaml").write_text(dump_config(world.config))
    run = str(world.config.run.folder)

    def train() -> list[int]:
        world.append(4)
        learner.iterate()
        return [f.step for f in recorded_files(folder(world))]

    assert train() == [1]
    assert [train() for _ in range(4)][-1] == [1, 2, 3, 4, 5]
    assert record([run, "--off"]) == 0
    assert "records no more; what is there stays, from its next batch on" in capsys.readouterr().out
    assert train() == [1, 2, 3, 4, 5]
    assert record([run, "--max-bytes", "20KiB"]) == 0
    assert "keeps at most 20.0KiB of recorded steps, from its next batch on" in capsys.readouterr().out
    assert train()[-1] == 7
    assert 1 < len(recorded_files(folder(world))) < 5
    assert sum(f.bytes for f in recorded_files(folder(world))) <= 20 * 1024
    assert record([run]) == 0
    assert "at most 20.0KiB (by `trustbatch record`)" in " ".join(capsys.readouterr().out.split())
    assert record([run, "--max-bytes", "much"]) == 2
    assert "give for example 256MiB" in capsys.readouterr().err


def test_a_folder_without_records_says_what_makes_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record([str(tmp_path)]) == 2
    assert "learner.record_bytes is above 0" in capsys.readouterr().err
