"""What has to be there before a run's processes start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services import prepare, tiny_model
from shared.config import Config, load_config
from shared.errors import ConfigError, DeadlineError, TrainingError


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(None, [f"model.path={folder / 'model'}", "model.tiny={}", *overrides], {})


def finished(config: Config) -> None:
    """A model folder as `prepare` leaves it."""
    folder = Path(config.model.path)
    folder.mkdir(parents=True)
    (folder / tiny_model.FINGERPRINT).write_text(json.dumps({"fingerprint": tiny_model.fingerprint(config)}))


def test_an_ordinary_model_and_one_that_is_there_need_nothing(tmp_path: Path) -> None:
    assert prepare.prepare(config_of(tmp_path, "model.tiny=null")).startswith("nothing to prepare")
    config = config_of(tmp_path)
    finished(config)
    assert prepare.prepare(config).endswith("there already")
    assert prepare.await_prepared(config, 0).endswith("there")


def test_who_waits_for_it_says_for_what_when_the_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(DeadlineError, match=r"waited 0 s for the model in .*/model, which `trustbatch prepare` makes"):
        prepare.await_prepared(config_of(tmp_path), 0)
    assert prepare.await_prepared(config_of(tmp_path, "model.tiny=null"), 0)


def test_somebody_elses_model_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a model that trustbatch did not make"):
        prepare.prepare(config_of(tmp_path))


@pytest.mark.system
def test_a_failure_on_the_way_is_told_and_leaves_nothing_that_counts_as_made(tmp_path: Path) -> None:
    config = config_of(tmp_path, "environment={kind: reasoning_gym, dataset: no_such_task}")
    with pytest.raises(TrainingError, match="examples left with exit code 2"):
        prepare.prepare(config)
    assert not tiny_model.is_current(config)
