"""What a run is called, where it lives, and which one is gone on with."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from services import run_folder
from services.up import placed_by_hand, which_run
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
    placed = which_run(config, name=None, resume=False, by_hand=False, now=NOW)
    assert placed.run.id == "demo-20261120-153000"
    assert placed.run.folder == config.run.folder.with_name("demo-20261120-153000")


def test_a_run_named_by_hand_keeps_its_name(config: Config) -> None:
    assert which_run(config, name=None, resume=False, by_hand=True).run == config.run
    named = which_run(config, name="mine", resume=False, by_hand=False)
    assert named.run.id == "mine"
    assert named.run.folder == config.run.folder.with_name("mine")


def test_set_and_environment_count_as_by_hand() -> None:
    assert placed_by_hand(["run.id=x"], {})
    assert placed_by_hand([], {"TRUSTBATCH__RUN__FOLDER": "x"})
    assert not placed_by_hand(["learner.steps=1"], {"TRUSTBATCH__LEARNER__STEPS": "2", "RUN__ID": "x"})


def test_a_name_that_cannot_be_one_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"run\.id.*a b"):
        which_run(config, name="a b", resume=False, by_hand=False)


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
    resumed = which_run(config, name=None, resume=True, by_hand=False)
    assert resumed.run.id == "demo-20261120-113000"
    assert resumed.run.folder.name == "demo-20261120-113000"


def test_resume_takes_the_folder_itself_where_it_is_a_run(config: Config) -> None:
    made(config)
    made(run_folder.stamped(config, NOW))
    assert which_run(config, name=None, resume=True, by_hand=False).run == config.run


def test_nothing_to_resume_is_said(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"there is no run in .*demo or .*demo-<time>; leave --resume away"):
        which_run(config, name=None, resume=True, by_hand=False)


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
