"""What a run is called, where it lives, and which one is gone on with."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from services import run_folder
from services.up import check_ports, placed_by_hand, which_run
from shared.config import Config, load_config
from shared.errors import ConfigError

NOW = datetime(2026, 11, 20, 15, 30, 0)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(None, [f"run.folder={tmp_path / 'demo'}", "run.id=demo"], {})


def made(config: Config) -> Config:
    run_folder.create(config)
    run_folder.write_config(config)
    return config


def test_every_start_is_a_run_of_its_own(config: Config) -> None:
    placed = which_run(config, name=None, by_hand=False, now=NOW)
    assert placed.run.id == "demo-20261120-153000"
    assert placed.run.folder == config.run.folder.with_name("demo-20261120-153000")


def test_a_run_named_by_hand_keeps_its_name(config: Config) -> None:
    assert which_run(config, name=None, by_hand=True).run == config.run
    named = which_run(config, name="mine", by_hand=False)
    assert named.run.id == "mine"
    assert named.run.folder == config.run.folder.with_name("mine")


def test_set_and_environment_count_as_by_hand() -> None:
    assert placed_by_hand(["run.id=x"], {})
    assert placed_by_hand([], {"TRUSTBATCH__RUN__FOLDER": "x"})
    assert not placed_by_hand(["learner.steps=1"], {"TRUSTBATCH__LEARNER__STEPS": "2", "RUN__ID": "x"})


def test_a_name_that_cannot_be_one_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"run\.id.*a b"):
        which_run(config, name="a b", by_hand=False)


def test_a_folder_with_a_run_in_it_is_refused_with_both_ways_out(config: Config) -> None:
    made(config)
    with pytest.raises(ConfigError, match=r"is not empty: --resume goes on with the run in it, --name NAME"):
        run_folder.create(config)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = load_config(None, [f"run.folder={tmp_path / 'file' / 'run'}"], {})
    with pytest.raises(ConfigError, match=r"run\.folder .* cannot be used"):
        run_folder.create(config)


def test_resume_takes_the_newest_run_of_this_configuration(config: Config) -> None:
    for hour in (9, 11, 10):
        made(run_folder.stamped(config, NOW.replace(hour=hour)))
    made(load_config(None, [f"run.folder={config.run.folder}-other", "run.id=other"], {}))
    resumed = run_folder.to_resume(config, environ={})
    assert resumed.run.id == "demo-20261120-113000"
    assert resumed.run.folder.name == "demo-20261120-113000"


def test_resume_takes_the_folder_itself_where_it_is_a_run(config: Config) -> None:
    made(config)
    made(run_folder.stamped(config, NOW))
    assert run_folder.to_resume(config, environ={}).run == config.run


def test_nothing_to_resume_is_said(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"there is no run in .*demo or .*demo-<time>; leave --resume away"):
        run_folder.to_resume(config, environ={})


def test_a_run_with_its_own_redis_starts_it_again_where_it_was(config: Config) -> None:
    assert run_folder.own_redis_port(config) == 0
    filled = config.model_copy(update={"redis": config.redis.model_copy(update={"url": "redis://127.0.0.1:4321"})})
    made(filled)
    assert run_folder.own_redis_port(filled) is None, "an address of somebody else's Redis"
    (config.run.folder / "redis").mkdir()
    assert run_folder.own_redis_port(filled) == 4321
    assert run_folder.own_redis_port(config) == 4321
    other = config.model_copy(update={"redis": config.redis.model_copy(update={"url": "redis://other:1"})})
    assert run_folder.own_redis_port(other) is None


def test_resume_keeps_what_the_run_was_started_with_and_takes_what_is_given_now(config: Config) -> None:
    place = [f"run.folder={config.run.folder}", "run.id=demo"]
    made(load_config(None, [*place, "learner.steps=77", "learner.weight_decay=0.1", "run.seed=5"], {}))
    environ = {"TRUSTBATCH__RUN__SEED": "6"}
    resumed = run_folder.to_resume(config, ["learner.weight_decay=0.2"], environ)
    assert (resumed.learner.steps, resumed.learner.weight_decay, resumed.run.seed) == (77, 0.2, 6)
    assert resumed.run.folder == config.run.folder


def test_resume_takes_the_password_from_where_it_was_given_as_no_run_stores_it(config: Config) -> None:
    made(config)
    given = load_config(None, [f"run.folder={config.run.folder}", "redis.password=secret"], {})
    password = run_folder.to_resume(given, environ={}).redis.password
    assert password is not None
    assert password.get_secret_value() == "secret"


def test_the_command_that_a_stopped_run_prints_finds_that_very_run(config: Config) -> None:
    for hour in (9, 11):
        made(run_folder.stamped(config, NOW.replace(hour=hour)))
    older = config.run.folder.with_name("demo-20261120-093000")
    assert run_folder.to_resume(load_config(older / "config.yaml", (), {}), environ={}).run.folder == older


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["metrics.port=9400"], "metrics.port is 9400.*set metrics.port to 0"),
        (["metrics.port=9400", "control_plane.port=9400", "rollout.servers=0"], "control_plane.port are both 9400"),
    ],
)
def test_one_port_for_several_processes_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_ports(load_config(None, overrides, {}))


@pytest.mark.parametrize("overrides", [[], ["control_plane.port=8400"], ["metrics.port=9400", "rollout.servers=0"]])
def test_ports_that_do_not_meet_are_fine(overrides: list[str]) -> None:
    check_ports(load_config(None, overrides, {}))
