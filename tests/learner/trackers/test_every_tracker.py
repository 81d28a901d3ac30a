"""Every tracker, read back with its own tools; those that are not installed are skipped, TensorBoard never is."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from learner.trackers.base import PACKAGES, Place, place_of
from learner.trackers.follower import STATE, Follower
from learner.trackers.series import point_of
from shared.config import Config, load_config
from shared.errors import ConfigError
from shared.log import configure
from shared.metrics import LearnerMetrics
from tests.learner.conftest import MakeWorld
from tests.services.rows import step, write_lines

ESS = {number: number / 10 for number in range(1, 9)}


def follow(folder: Path, kind: str, final: int) -> LearnerMetrics:
    """A learner's life: everything up to the final step is given."""
    if not (folder / "history.jsonl").exists():
        part = {"token_ess": 0.5, "kl": 0.25}
        rows = [step(n, token_ess=ess, by_server={"r/0=1": part}, grad_norm=None) for n, ess in ESS.items()]
        write_lines(folder / "history.jsonl", rows)
    metrics = LearnerMetrics()
    place = Place(kind, "run", "project", folder / kind, "")
    follower = Follower(place, folder, metrics, configure("run", "learner", "critical"))
    follower.follow(final)
    follower.close(60)
    assert metrics.registry.get_sample_value("trustbatch_tracker_failures_total") == 0
    return metrics


def test_tensorboard_has_every_step_once_also_where_a_learner_died_before_noting(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow(tmp_path, "tensorboard", 3)
    noted = (tmp_path / STATE).read_bytes()
    follow(tmp_path, "tensorboard", 6)
    (tmp_path / STATE).write_bytes(noted)  # killed after the writing, before the note: 4 to 6 come again
    follow(tmp_path, "tensorboard", 8)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "project" / "run"))
    found.Reload()
    assert [(e.step, round(e.value, 6)) for e in found.Scalars("token_ess")] == list(ESS.items())
    assert [e.wall_time for e in found.Scalars("token_ess")] == [1000.0 + number for number in ESS]
    assert [e.value for e in found.Scalars("by_server/kl/r_0_1")] == [0.25] * 8
    assert "grad_norm" not in found.Tags()["scalars"], "what is not known is left out"


def test_mlflow_has_every_step_once_also_where_a_learner_died_before_noting(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    follow(tmp_path, "mlflow", 4)
    (tmp_path / STATE).unlink()
    follow(tmp_path, "mlflow", 8)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("project")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    history = client.get_metric_history(run.info.run_id, "token_ess")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == list(ESS.items())
    assert len(client.get_metric_history(run.info.run_id, "by_server.kl/r_0_1")) == 8


def test_trackio_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # where a skipped import would look
    pytest.importorskip("trackio")
    follow(tmp_path, "trackio", 4)
    follow(tmp_path, "trackio", 8)
    with sqlite3.connect(tmp_path / "trackio" / "project.db") as database:
        rows = database.execute("select step, run_name from metrics order by step").fetchall()
    assert rows == [(number, "run") for number in ESS]


def test_wandb_keeps_every_step_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow(tmp_path, "wandb", 4)
    follow(tmp_path, "wandb", 8)
    folders = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    files = [path for folder in folders for path in folder.glob("*.wandb")]
    deadline = time.monotonic() + 60
    while min(path.read_bytes().count(b"sequence_ess") for path in files) < 4:  # its own process writes them
        assert time.monotonic() < deadline, "of each life, its four steps"
        time.sleep(0.05)


def test_a_tracker_that_is_not_installed_is_named_with_the_command_that_installs_it(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.trackers.base.find_spec", lambda name: None)
    for kind, package in PACKAGES.items():
        tracked = load_config(None, [f"metrics.tracker.kind={kind}"], {})
        with pytest.raises(ConfigError, match=f"kind is {kind}, which is not installed: pip install {package}"):
            place_of(tracked)
    assert place_of(config) is None


def test_a_server_is_refused_where_there_can_be_none_and_so_are_passwords() -> None:
    with pytest.raises(ConfigError, match="tensorboard' has no server"):
        load_config(None, ["metrics.tracker={kind: tensorboard, url: 'http://host'}"], {})
    with pytest.raises(ConfigError, match="holds a user or a password"):
        load_config(None, ["metrics.tracker={kind: mlflow, url: 'http://me:secret@host'}"], {})


def test_a_row_is_given_by_the_names_of_the_history() -> None:
    point = point_of(
        step(3, shadows=[{"objective": "grpo(eps_high=0.3)", "loss": 0.5}], by_position={"1024+": {"tokens": 7}})
    )
    assert (point.step, point.at) == (3, 1003.0)
    assert point.values["token_ess"] == 0.98
    assert point.values["shadows.loss/grpo_eps_high_0.3_"] == 0.5
    assert point.values["by_position.tokens/1024_"] == 7
    assert "entropy_mean" not in point.values
    assert all(isinstance(value, float) for value in point.values.values())


@pytest.mark.system
def test_a_run_s_own_steps_arrive_with_its_checkpoints(make_world: MakeWorld) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ("learner.steps=3", "learner.groups_per_batch=2", "metrics.tracker.kind=tensorboard")
    world = make_world(*overrides)
    learner = world.learner()
    for _ in range(3):
        world.append(2, version=0)
        learner.iterate()
    learner.finish()
    found = EventAccumulator(str(world.config.run.folder / "tensorboard" / "trustbatch" / world.config.run.id))
    found.Reload()
    rows = world.lines("history.jsonl")
    assert [(e.step, e.value) for e in found.Scalars("token_ess")] == [
        (row["step"], pytest.approx(row["token_ess"])) for row in rows
    ]
    assert world.control.phase()[0] == "finished"
