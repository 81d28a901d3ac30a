"""Replay: the recorded numbers bit for bit, any objective on any weights, and the same bytes every time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import build_step
from learner.model import PolicyModel
from learner.objective.registry import OBJECTIVES
from learner.objectives import objectives_of
from learner.recording import FOLDER, encode, read, recorded_files
from learner.replay import main, select, wanted_objectives
from learner.step import make_optimizer, take_step
from shared.config.load import dump_config
from shared.errors import ConfigError
from shared.manifest import Probe
from shared.store import PolicyStore
from tests import builders
from tests.learner.conftest import MakeWorld
from tests.learner.world import World

pytestmark = pytest.mark.system

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def settings_of_this_process() -> Iterator[None]:
    """A replay's own process ends; this one goes on as it was."""
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Told:
    """What a replay printed."""

    code: int
    out: str
    err: str

    @property
    def steps(self) -> list[dict[str, Any]]:
        assert self.code == 0, self.err
        found: list[dict[str, Any]] = json.loads(self.out)["steps"]
        return found


def replayed(capsys: Output, world: World, *arguments: str, as_json: bool = True) -> Told:
    code = main([str(world.config.run.folder), *arguments, *(["--json"] if as_json else [])])
    printed = capsys.readouterr()
    return Told(code, printed.out, printed.err)


def train(make_world: MakeWorld, *overrides: str, batches: int = 3) -> World:
    """A run whose last batches are stale, with two micro-batches a step."""
    world = make_world("learner.micro_batch_tokens=100", *overrides)
    learner = world.learner()
    for _ in range(batches):
        world.append(4, version=0)
        learner.iterate()
    return world


def of(step: dict[str, Any], name: str) -> dict[str, Any]:
    [found] = [o for o in step["objectives"] if o["objective"].split("(")[0] == name]
    return dict(found)


@pytest.mark.parametrize(
    "overrides",
    [
        ["learner.objective.name=p3o"],
        ["learner.objective.name=grpo"],
        ["learner.objective.name=gspo", "learner.objective.entropy_weight=0.01"],
        ["learner.objective.name=decoupled_ppo", "learner.passes=2", "learner.publish_every=2"],
        [
            "learner.objective.name=p3o",
            "learner.shuffle_rewards=true",
            "learner.minibatches=2",
            "learner.publish_every=2",
        ],
    ],
)
def test_the_trained_objective_gives_the_recorded_numbers_bit_for_bit(
    make_world: MakeWorld, capsys: Output, overrides: list[str]
) -> None:
    world = train(make_world, *overrides)
    told = replayed(capsys, world, "--objective", "p3o")
    rows = world.lines("history.jsonl")
    assert len(told.steps) == len(rows) >= 3
    for step, row in zip(told.steps, rows, strict=True):
        assert step["differs"] == {}
        assert step["objectives"][0]["outcome"]["loss"] == row["loss"]
        assert (step["token_ess"], step["sequence_ess"]) == (row["token_ess"], row["sequence_ess"])
    assert rows[-1]["token_ess"] < 0.9999
    shown = replayed(capsys, world, as_json=False).out
    assert "gives the recorded loss and ESS statistics bit for bit in every step" in shown
    assert re.search(rf"\n *{world.config.learner.objective.name}.* \*", shown)


def test_a_step_with_experts_replays_either_way(make_world: MakeWorld, capsys: Output) -> None:
    world = make_world("rollout.experts=2", "learner.objective={name: chord, mu: 0.5}")
    learner = world.learner()
    for index in world.lease(4):
        world.put(builders.with_experts(world.group(index), 2, version=0))
    learner.iterate()
    for arguments in ([], ["--checkpoint", "0"]):
        [step] = replayed(capsys, world, *arguments).steps
        assert step["differs"] == {}
        assert step["objectives"][0]["objective"] == "chord(mu=0.5)"
    [step] = replayed(capsys, world, "--objective", "grpo").steps
    assert of(step, "grpo")["outcome"]["weight_p1"] > 0.99, "of the policy's own tokens, which are fresh"
    [step] = replayed(capsys, world, "--objective", "grpo", "--checkpoint", "0").steps
    assert "an expert wrote some of these" in of(step, "grpo")["lacks"]


def test_the_policy_that_a_batch_began_with_is_the_recorded_one_whatever_weights_are_looked_at(
    make_world: MakeWorld, capsys: Output
) -> None:
    """With a shadow that needs it the proximal log-probs are in the record, without it they follow from it."""
    losses = []
    for overrides in ([], ["learner.shadows=[{name: minirl}]"]):
        world = train(make_world, "learner.learning_rate=0.05", "learner.retain_versions=10", *overrides)
        wanted = ["--objective", "decoupled_ppo", "--set-knob", "eps_low=0", "--checkpoint", "0"]
        losses.append([of(step, "decoupled_ppo")["outcome"] for step in replayed(capsys, world, *wanted).steps])
    assert losses[0] == losses[1]
    assert losses[0][-1]["cut_share"] > 0


def test_a_number_that_is_not_the_recorded_one_is_said_with_the_difference(
    make_world: MakeWorld, capsys: Output
) -> None:
    world = train(make_world)
    folder = world.config.run.folder / FOLDER
    path = folder / recorded_files(folder)[1].name
    recording = read(path)
    path.write_bytes(encode(replace(recording, loss=recording.loss + 0.5)))
    assert [s["differs"] for s in replayed(capsys, world).steps] == [{}, {"loss": pytest.approx(-0.5)}, {}]
    shown = replayed(capsys, world, as_json=False).out
    assert "differs from what was recorded in 1 of 3 steps, most in step 2: loss by -0.5." in shown


def test_the_weights_of_the_step_before_give_the_recorded_numbers_and_gradient(
    make_world: MakeWorld, capsys: Output
) -> None:
    world = train(make_world)
    for weights in ("newest", "2", "v2", str(world.store.folder(2))):  # the checkpoint is of step 2 too
        [step] = replayed(capsys, world, "--steps", "3", "--checkpoint", weights, "--objective", "p3o").steps
        assert step["differs"] == {}
        assert step["objectives"][0]["grad_norm"] == step["recorded"]["grad_norm"]
    [other] = replayed(capsys, world, "--steps", "3", "--checkpoint", "0", "--objective", "p3o").steps
    assert {"loss", "token_ess", "sequence_ess", "kl"} <= other["differs"].keys()
    assert other["token_ess"] > 0.999999, "the data is of version 0"


def test_a_published_version_is_looked_for_where_the_run_has_its_store(
    make_world: MakeWorld, capsys: Output, tmp_path: Path
) -> None:
    world = make_world(f"store.url={tmp_path / 'elsewhere'}")
    world.store = PolicyStore(tmp_path / "elsewhere")
    learner = world.learner()
    (world.config.run.folder / "config.yaml").write_text(dump_config(world.config))
    world.append(4)
    learner.iterate()
    [step] = replayed(capsys, world, "--checkpoint", "v0", "--objective", "p3o").steps
    assert step["step"] == 1
    (world.store.begin(9) / "tensors.json").write_text("[]")
    world.store.commit(9, 1, 1, Probe([[1, 2]], [[-1.0]]), 1.0)
    told = replayed(capsys, world, "--checkpoint", "v9")
    assert (told.code, "version 9 went over the wire alone, the store has no files" in told.err) == (2, True)


def test_every_objective_on_a_checkpoint_says_the_same_bytes_twice(make_world: MakeWorld, capsys: Output) -> None:
    world = train(make_world)
    before = {path: path.read_bytes() for path in (world.config.run.folder / "checkpoints").rglob("*.safetensors")}
    first = replayed(capsys, world, "--checkpoint", "newest", "--objective", "all")
    assert first.out == replayed(capsys, world, "--checkpoint", "newest", "--objective", "all").out
    assert {path: path.read_bytes() for path in before} == before
    assert first.steps[2:] == replayed(capsys, world, "--checkpoint", "newest", "--steps", "3").steps
    for step in first.steps:
        assert {o["objective"] for o in step["objectives"]} == set(OBJECTIVES)
        for name in ("grpo", "cispo", "decoupled_ppo", "chord"):
            assert -1 <= of(step, name)["outcome"]["cosine"] <= 1
            assert of(step, name)["grad_norm"] > 0
        assert of(step, "p3o")["outcome"]["cosine"] is None
    shown = replayed(capsys, world, "--checkpoint", "newest", as_json=False).out
    assert "cosine" in shown
    assert "p3o *" in shown


def test_a_shadows_numbers_are_those_that_the_learner_saw(make_world: MakeWorld, capsys: Output) -> None:
    world = train(
        make_world, "learner.shadows=[{name: grpo}, {name: truncated_is}]", "learner.shadow_gradients_every=1"
    )
    folder = world.config.run.folder / FOLDER
    recording = read(folder / recorded_files(folder)[2].name)
    policy = PolicyModel.load(str(world.store.folder(2)), "float32", torch.device("cpu"))
    rewards = np.split(recording.tokens["rewards"], 4)
    batch = build_step(recording.decoded_groups(), rewards, "group_std", 100)
    config = world.config.learner
    outcome = take_step(policy, make_optimizer(policy, config), batch, objectives_of(config), config, 3)
    wanted = ["--objective", "grpo", "--objective", "truncated_is"]
    [step] = replayed(capsys, world, "--steps", "3", "--checkpoint", "2", *wanted).steps
    for shadow in outcome.shadows:
        # The learner compares after clipping the gradient, which rounds.
        cosine = pytest.approx(shadow.cosine, rel=1e-6)
        assert of(step, shadow.objective)["outcome"] == {**vars(shadow), "cosine": cosine}


def test_what_a_record_lacks_is_said_by_objective(make_world: MakeWorld, capsys: Output) -> None:
    world = train(make_world, "learner.minibatches=2", "learner.publish_every=2", batches=1)
    wanted = ["--objective", "remix", "--objective", "chord", "--objective", "decoupled_ppo"]
    first, second = replayed(capsys, world, *wanted).steps
    assert "preceding_logprobs" in of(first, "remix")["lacks"]
    assert of(first, "remix")["outcome"] is None
    assert of(first, "chord")["outcome"]["loss"] is not None, "who wrote a token is in the groups"
    assert of(first, "decoupled_ppo")["lacks"] == "", "the first step of a batch is where it began"
    assert "not the first of its batch" in of(second, "decoupled_ppo")["lacks"]
    [entropy] = replayed(capsys, world, "--steps", "1", "--objective", "grpo", "--set-knob", "entropy_weight=0.1").steps
    assert "give --checkpoint" in of(entropy, "grpo")["lacks"]
    wanted = ["--objective", "grpo", "--set-knob", "entropy_weight=0.1", "--checkpoint", "0"]
    assert of(replayed(capsys, world, "--steps", "1", *wanted).steps[0], "grpo")["lacks"] == ""
    shown = replayed(capsys, world, as_json=False).out
    assert "decoupled_ppo in 1 of 2 steps: needs proximal_logprobs" in shown


def test_a_torn_an_altered_and_a_foreign_file_are_refused_by_name_and_the_others_used(
    make_world: MakeWorld, capsys: Output
) -> None:
    world = train(make_world, batches=4)
    folder = world.config.run.folder / FOLDER
    torn, altered, good, foreign = [folder / f.name for f in recorded_files(folder)]
    torn.write_bytes(torn.read_bytes()[:-9])
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    foreign.write_bytes(b"not ours")
    told = replayed(capsys, world)
    assert [step["step"] for step in told.steps] == [3]
    assert [name for name, _ in json.loads(told.out)["refused"]] == [torn.name, altered.name, foreign.name]
    shown = replayed(capsys, world, as_json=False).out
    assert f"refused: {altered.name}: sha256: the file was altered" in shown
    recording = read(good)
    good.write_bytes(encode(replace(recording, tokens={**recording.tokens, "later": recording.tokens["advantages"]})))
    told = replayed(capsys, world)
    assert (told.code, json.loads(told.out)["steps"]) == (1, [])
    assert "tokens.later: this version knows no such field" in told.out
    assert "no step could be replayed" in replayed(capsys, world, as_json=False).out


def test_a_skipped_step_replays_with_its_offender_and_without_a_crash(make_world: MakeWorld, capsys: Output) -> None:
    world = make_world("learner.max_nonfinite_steps=5")
    learner = world.learner()
    for parameter in learner.training.parts.policy.named_parameters().values():
        parameter.data.fill_(math.nan)
    world.append(4, version=0)
    learner.iterate()
    [step] = replayed(capsys, world).steps
    assert step["differs"] == {}
    assert step["token_ess"] is None
    assert len(step["offending_groups"]) == 4
    assert "step 1 was skipped: non-finite ESS (nan) in all 4 groups" in replayed(capsys, world, as_json=False).out
    [step] = replayed(capsys, world, "--checkpoint", "0", "--objective", "grpo").steps
    assert step["token_ess"] > 0.999999, "the groups were good, the weights were not"
    assert of(step, "grpo")["grad_norm"] > 0


def test_replay_shows_the_surviving_lineage_unless_asked_for_the_other(make_world: MakeWorld, capsys: Output) -> None:
    world = train(make_world)
    again = world.learner()
    while again.training.step < 3:
        again.iterate()
    assert [(s["epoch"], s["step"]) for s in replayed(capsys, world).steps] == [(1, 1), (1, 2), (2, 3)]
    assert [(s["epoch"], s["step"]) for s in replayed(capsys, world, "--abandoned").steps] == [(1, 3)]
    (world.config.run.folder / FOLDER / "e0002-s00000003.msgpack").unlink()
    lost = replayed(capsys, world, "--steps", "3")
    assert "recorded are 1..2; --abandoned replays what a restore left behind" in lost.err


def test_knobs_go_to_those_that_have_them(make_world: MakeWorld, capsys: Output) -> None:
    world = train(make_world, batches=1)
    wanted = wanted_objectives(["p3o", "grpo", "aipo"], ["p3o:kl_estimator=k3", "cap=3"])
    assert [o.label for o in wanted] == ["p3o(kl_estimator=k3)", "grpo", "truncated_is(cap=3.0)"]
    wanted = wanted_objectives(["grpo", "dr_grpo", "tis", "truncated_is"], ["dr_grpo:eps_low=0.1", "aipo:cap=3"])
    labels = ["grpo", "grpo(aggregation=sequence_sum, eps_low=0.1)", "truncated_is(cap=3.0)"]
    assert [o.label for o in wanted] == labels, "an alias has its own knobs, and two names of one are one"
    told = replayed(capsys, world, "--objective", "p3o", "--set-knob", "kl_estimator=k3")
    assert [o["objective"] for o in told.steps[0]["objectives"]] == ["p3o", "p3o(kl_estimator=k3)"]
    for wrong, message in (
        ("cap=3", "no chosen objective takes it"),
        ("p3o:kl_estimator=k9", "kl_estimator must be one of"),
        ("grpo:kl_estimator=k3", "no chosen objective takes it"),
        ("nonsense", "is not KNOB=VALUE"),
        ("kl_estimator=[", "is no value"),
    ):
        refused = replayed(capsys, world, "--objective", "p3o", "--set-knob", wrong)
        assert (refused.code, refused.out) == (2, "")
        assert message in refused.err
    assert "did you mean grpo" in replayed(capsys, world, "--objective", "grp").err


def test_steps_that_are_not_there_say_which_are(make_world: MakeWorld, tmp_path: Path) -> None:
    folder = train(make_world).config.run.folder / FOLDER
    assert [f.step for f in select(folder, "2..")] == [2, 3]
    assert [f.step for f in select(folder, "..2")] == [1, 2]
    with pytest.raises(ConfigError, match=r"recorded are 1\.\.3"):
        select(folder, "7..9")
    with pytest.raises(ConfigError, match="abandoned: there are none"):
        select(folder, "..", abandoned=True)
    with pytest.raises(ConfigError, match=r"is not A\.\.B"):
        select(folder, "a")
    with pytest.raises(ConfigError, match=r"learner\.record_bytes is above 0"):
        select(tmp_path, "..")


def test_weights_that_are_not_there_say_which_are(make_world: MakeWorld, capsys: Output) -> None:
    world = train(make_world)
    told = replayed(capsys, world, "--checkpoint", "99")
    assert told.code == 2
    assert "e0001-n000001-s00000002" in told.err
    assert "newest: 0, 1, 2, 3" in told.err
    assert replayed(capsys, world, "--checkpoint", "").code == 2
    empty = world.config.run.folder / "empty"
    empty.mkdir()
    told = replayed(capsys, world, "--checkpoint", str(empty))
    assert told.code == 2
    assert told.err.startswith("--checkpoint")


def test_a_figure_that_cannot_be_drawn_is_refused(make_world: MakeWorld, capsys: Output, tmp_path: Path) -> None:
    world = train(make_world, batches=1)
    assert "--figure" in replayed(capsys, world, "--figure", str(tmp_path / "x.foo")).err
    assert replayed(capsys, world, "--figure", str(tmp_path / "x.png")).code == 0
    assert (tmp_path / "x.png").stat().st_size > 10_000
    for file in (world.config.run.folder / FOLDER).iterdir():
        file.write_bytes(b"torn")
    told = replayed(capsys, world, "--figure", str(tmp_path / "y.png"))
    assert (told.code, "none of the steps can be read" in told.err) == (2, True)
