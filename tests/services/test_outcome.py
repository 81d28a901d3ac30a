"""What is said at the end of a run."""

from __future__ import annotations

import signal
from pathlib import Path

from services import run_folder
from services.outcome import stopped
from shared.config import load_config


def test_a_stopped_run_says_the_command_that_goes_on_with_it(tmp_path: Path) -> None:
    config = load_config(None, [f"run.folder={tmp_path / 'my run'}"], {})
    run_folder.create(config)
    run_folder.write_config(config)
    outcome = stopped("SIGTERM", config)
    assert (outcome.exit_code, outcome.short) == (128 + signal.SIGTERM, "stopped by SIGTERM")
    assert outcome.reason.splitlines()[1] == f"  trustbatch up --config '{tmp_path}/my run/config.yaml' --resume"
    assert "password" not in outcome.reason


def test_a_run_that_was_stopped_before_it_began_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    outcome = stopped("SIGINT", load_config(None, [f"run.folder={tmp_path}"], {}))
    assert outcome.reason == "stopped by SIGINT"


def test_a_password_is_asked_for_again_and_not_shown(tmp_path: Path) -> None:
    config = load_config(None, [f"run.folder={tmp_path}", "redis.password=hunter2"], {})
    run_folder.write_config(config)
    reason = stopped("SIGINT", config).reason
    assert "give it redis.password again: a run does not store" in reason
    assert "hunter2" not in reason
