"""What is said at the end of a run."""

from __future__ import annotations

import signal
from pathlib import Path

from services import run_folder
from services.history import read_history
from services.outcome import stopped, went_far
from shared.config import load_config
from tests.services.rows import step, write_lines


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


def test_the_first_step_that_lost_its_batch_is_named(tmp_path: Path) -> None:
    ess = {1: 0.99, 2: 0.4, 3: 0.002, 4: 0.001}
    write_lines(tmp_path / "history.jsonl", [step(n, token_ess=value) for n, value in ess.items()])
    assert went_far(read_history(tmp_path)) == (0.002, 3)
    write_lines(tmp_path / "history.jsonl", [step(1, token_ess=None), step(2)])
    assert went_far(read_history(tmp_path)) is None
