"""What differs between two configurations, and who has to start again for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import app
from shared.config import Config, load_config
from shared.config.diff import READERS, changes, readers

ROOT = Path(__file__).parents[2]
ROOMS = {  # kind of process: where its source lies
    "learner": ["learner/**/*.py"],
    "rollout": ["rollout/**/*.py"],
    "control-plane": ["services/control_plane/**/*.py", "services/lag.py"],
}
OF_SEVERAL_KEYS = {  # properties of sections, and the keys that they are computed from
    "learner.groups_per_publish": ["groups_per_batch", "publish_every", "minibatches", "passes"],
    "learner.steps_per_batch": ["minibatches", "passes"],
    "rollout.largest_lag": ["lag", "max_lag"],
    "admission.policy": ["admit", "select", "evict"],
    "admission.batches_held": ["window", "select", "max_staleness"],
}


def given(*overrides: str) -> Config:
    return load_config(None, overrides, {})


def test_what_differs_is_named_with_both_values_and_its_readers() -> None:
    found = changes(given("learner.steps=200"), given("learner.steps=300", "rollout.groups_in_flight=8"))
    assert [(change.key, change.before, change.after, change.restarts) for change in found] == [
        ("learner.steps", 200, 300, ("learner", "control-plane")),
        ("rollout.groups_in_flight", 16, 8, ("rollout",)),
    ]
    assert changes(given(), given()) == []


def test_a_key_that_is_only_on_one_side_and_a_kind_that_changes_are_differences_too() -> None:
    found = changes(given(), given("rollout.engine={kind: transformers}", "learner.objective={name: grpo, beta: 0.1}"))
    by_key = {change.key: (change.before, change.after) for change in found}
    assert by_key["rollout.engine.kind"] == ("vllm", "transformers")
    assert by_key["rollout.engine.max_num_seqs"] == (256, "-")
    assert by_key["learner.objective.beta"] == ("-", 0.1)


def test_keys_that_make_it_another_run_say_so() -> None:
    found = changes(given(), given("run.seed=1", "environment.dataset=gcd", "learner.learning_rate=0.1"))
    assert {change.key: change.another_run for change in found} == {
        "run.seed": True,
        "environment.dataset": True,
        "learner.learning_rate": False,
    }


def test_a_secret_that_differs_is_named_and_never_shown() -> None:
    before = load_config(None, (), {"TRUSTBATCH__REDIS__PASSWORD": "open sesame"})
    [change] = changes(before, given())
    assert (change.key, change.restarts) == ("redis.password", ("learner", "rollout", "control-plane"))
    assert "sesame" not in repr(change)


def test_what_concerns_one_side_of_the_store_restarts_that_side_alone() -> None:
    found = changes(given(), given("store={url: /mnt/a, cache: /mnt/b, part_bytes: 1MiB, full_every: 4, parallel: 8}"))
    assert {change.key: change.restarts for change in found} == {
        "store.url": ("learner", "rollout"),
        "store.parallel": ("learner", "rollout"),
        "store.cache": ("rollout",),
        "store.part_bytes": ("rollout",),
        "store.full_every": ("learner",),
    }


def test_where_weights_are_sent_from_concerns_the_learner_and_how_they_are_sent_both() -> None:
    found = changes(given(), given("store.transfer={kind: nccl, host: learner, port: 29500}"))
    assert {change.key: change.restarts for change in found} == {
        "store.transfer.kind": ("learner", "rollout"),
        "store.transfer.host": ("learner",),
        "store.transfer.port": ("learner",),
    }


METHODS = dir(Config)


def read_keys(role: str) -> Iterator[str]:
    """Every `config.section.key` that the source of a kind of process reads."""
    for path in (path for pattern in ROOMS[role] for path in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            here = node
            while isinstance(here, ast.Attribute):
                names.insert(0, here.attr)
                here = here.value
            names[:0] = [here.id] if isinstance(here, ast.Name) else []
            for index, name in enumerate(names[1:-1], start=1):
                if (
                    name in Config.model_fields
                    and names[index - 1].endswith("config")
                    and names[index + 1] not in METHODS
                ):
                    yield f"{name}.{names[index + 1]}"


@pytest.mark.parametrize("role", ROOMS)
def test_whatever_a_process_reads_names_that_process(role: str) -> None:
    found = set(read_keys(role))
    assert len(found) >= 5
    for key in found:
        section = key.partition(".")[0]
        for single in [f"{section}.{name}" for name in OF_SEVERAL_KEYS.get(key, [])] or [key]:
            below = [roles for name, roles in READERS.items() if name.startswith(f"{single}.")]
            assert any(role in roles for roles in [readers(single), *below]), f"{role} reads {single}"


def test_every_section_and_every_name_of_the_table_exists() -> None:
    for section in Config.model_fields:
        assert section in READERS
    known = load_config(None, ["model.tiny={}"], {}).model_dump()
    for name in READERS:
        here = known
        for part in name.split("."):
            assert part in here, name
            here = here[part] if isinstance(here[part], dict) else {}


def test_the_command_says_it_in_lines(tmp_path: Path) -> None:
    before, after = tmp_path / "before.yaml", tmp_path / "after.yaml"
    before.write_text("learner: {steps: 100}\n")
    after.write_text("learner: {steps: 100, learning_rate: 0.001}\nrun: {seed: 2}\n")
    runner = CliRunner()
    said = runner.invoke(app, ["config", "diff", str(before), str(after)]).output.splitlines()
    assert said == [
        "learner.learning_rate: 1e-06 -> 0.001  (read by learner)",
        "run.seed: 0 -> 2  (read by learner, rollout; belongs to another run: give it another run.id)",
        "start again: learner, rollout",
    ]
    assert runner.invoke(app, ["config", "diff", str(before), str(before)]).output == "nothing has to start again\n"
