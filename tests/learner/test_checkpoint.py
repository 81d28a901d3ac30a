"""Checkpoints on disk: whole or not there, newest good one first, and exactly what was saved."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from learner.batch import batch_rewards, build_step
from learner.checkpoint import CheckpointStore, TrainingState, collect_tensors, restore_tensors
from learner.lineage import START, Segment
from learner.model import PolicyModel
from learner.objectives import objectives_of
from learner.step import make_optimizer, take_step
from shared.config.learner import LearnerConfig
from shared.errors import CheckpointError
from shared.intervals import Intervals
from tests import builders

CONFIG = LearnerConfig(learning_rate=1e-2)
Trained = tuple[PolicyModel, torch.optim.Optimizer]


def state(step: int = 5) -> TrainingState:
    segments = (START, Segment(7, 3, 3))
    return TrainingState(step, 3, 8, segments, Intervals([(0, 3), (6, 6)]), {"applied": 5}, {"run": {"seed": 1}})


def trained(tiny_folder: Path, steps: int) -> Trained:
    policy = PolicyModel.load(str(tiny_folder), "float32", torch.device("cpu"))
    optimizer = make_optimizer(policy, CONFIG)
    for step in range(steps):
        train(policy, optimizer, step)
    return policy, optimizer


def train(policy: PolicyModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    groups = [builders.group(step)]
    batch = build_step(groups, batch_rewards(groups), "group_std", 10**4)
    take_step(policy, optimizer, batch, objectives_of(CONFIG), CONFIG, step + 1)


def store_in(tmp_path: Path) -> tuple[CheckpointStore, list[str]]:
    said: list[str] = []
    return CheckpointStore(tmp_path / "checkpoints", 2, said.append), said


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tiny_folder: Path, tmp_path: Path) -> None:
    store, _ = store_in(tmp_path)
    policy, optimizer = trained(tiny_folder, 2)
    store.write(1, state(), collect_tensors(policy, optimizer))
    train(policy, optimizer, 2)
    drawn = torch.rand(3)

    other, its_optimizer = trained(tiny_folder, 1)
    checkpoint = store.newest()
    assert checkpoint is not None
    restore_tensors(checkpoint.tensors, other, its_optimizer)
    train(other, its_optimizer, 2)
    assert torch.equal(torch.rand(3), drawn), "the random numbers go on as well"
    for name, weight in policy.named_parameters().items():
        assert torch.equal(weight, other.named_parameters()[name]), name
    assert checkpoint.state == state()


def test_the_oldest_are_removed_and_the_epoch_orders_before_the_number(tiny_folder: Path, tmp_path: Path) -> None:
    store, _ = store_in(tmp_path)
    tensors = collect_tensors(*trained(tiny_folder, 1))
    names = [store.write(epoch, state(step), tensors) for epoch, step in ((1, 5), (1, 10), (3, 6))]
    assert names == ["e0001-n000001-s00000005", "e0001-n000002-s00000010", "e0003-n000003-s00000006"]
    assert store.names() == names[1:]
    newest = store.newest()
    assert newest is not None
    assert newest.state.step == 6
    assert store.newest_epoch() == 3
    assert store.versions() == [8, 8]


@pytest.mark.parametrize("damage", ["altered", "cut", "gone", "no manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_said(tiny_folder: Path, tmp_path: Path, damage: str) -> None:
    store, said = store_in(tmp_path)
    tensors = collect_tensors(*trained(tiny_folder, 1))
    good, bad = store.write(1, state(5), tensors), store.write(1, state(6), tensors)
    file = store.root / bad / "model.safetensors"
    whole = file.read_bytes()
    if damage == "altered":
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(whole[:-100])
    elif damage == "gone":
        file.unlink()
    elif damage == "no manifest":
        (store.root / bad / "manifest.json").unlink()
    else:
        (store.root / bad / "manifest.json").write_bytes(b"")
    newest = store.newest()
    assert newest is not None
    assert newest.name == good
    if damage == "no manifest":
        assert said == [], "it was never finished"
    else:
        assert len(said) == 1
        assert bad in said[0]
        assert (store.root / f"{bad}.torn").is_dir()
    assert store.names() == [good]
    before = len(said)
    store.newest()
    assert len(said) == before, "it is said once"
    assert store.write(2, state(7), tensors).startswith("e0002-n000003")
    assert store.names()[0] == good, "what was set aside takes no good one's place"


def test_a_crash_while_writing_leaves_the_checkpoints_before_it(tiny_folder: Path, tmp_path: Path) -> None:
    store, _ = store_in(tmp_path)
    tensors = collect_tensors(*trained(tiny_folder, 1))
    good = store.write(1, state(5), tensors)
    torn = store.root / "e0001-n000002-s00000006"
    shutil.copytree(store.root / good, torn)
    (torn / "manifest.json").unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.name == good
    names = [store.write(1, state(step), tensors) for step in (6, 7)]
    assert names[0] == "e0001-n000003-s00000006"
    assert sorted(path.name for path in store.root.iterdir()) == names, "what the crash left is removed too"


def test_a_disk_that_refuses_is_an_error_that_names_the_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    store, _ = store_in(tmp_path)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        store.write(1, state(), collect_tensors(*trained(tiny_folder, 1)))


def test_a_folder_without_checkpoints_has_none(tmp_path: Path) -> None:
    store, said = store_in(tmp_path)
    assert store.newest() is None
    assert store.newest_epoch() == 0
    assert said == []


def test_another_optimizer_s_state_is_refused_by_its_key(tiny_folder: Path) -> None:
    tensors = collect_tensors(*trained(tiny_folder, 1))
    policy, _ = trained(tiny_folder, 0)
    config = LearnerConfig(optimizer="adafactor")
    with pytest.raises(CheckpointError, match=r"not Adafactor: set learner\.optimizer to"):
        restore_tensors(tensors, policy, make_optimizer(policy, config))
