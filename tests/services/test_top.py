"""`trustbatch top` on a real Redis: what it says once, as text and as JSON, and what it says where nobody answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.cli import app
from services.eyes import Eyes, HttpSource, RedisSource
from services.status import RunStatus
from services.top import show, told
from shared.config import Config
from shared.control import ControlState, Latest
from shared.errors import ConfigError, StreamError
from shared.keys import Keys
from shared.redis_client import Client
from tests.conftest import free_port
from tests.services.rows import Row, step


@pytest.fixture
def control(client: Client, keys: Keys) -> ControlState:
    """A run that trains."""
    control = ControlState(client, keys)
    control.set_phase("running")
    control.announce(control.take_epoch(), Latest(3, 2, 3), 0, [])
    control.beat("learner", {"kind": "learner", "state": "waiting for groups"}, 30)
    control.beat("rollout:r0", {"kind": "rollout", "state": "generating", "floor_token_ess": 0.9991}, 30)
    for number in (1, 2, 3):
        control.add_history(step(number, token_ess=0.93, staleness_max=4, floor_token_ess=0.9991))
    return control


def overrides_of(config: Config, tmp_path: Path) -> tuple[str, list[str]]:
    """A YAML file that names the run."""
    file = tmp_path / "run.yaml"
    file.write_text(f"run: {{id: {config.run.id}}}\nredis: {{url: {config.redis.url}}}\n")
    return str(file), []


def test_it_says_once_what_the_dashboard_says(
    control: ControlState, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(*overrides_of(config, tmp_path), once=True, as_json=False)
    text = capsys.readouterr().out
    for part in ("Trusted: ESS .93; staleness 4, floor .9991.", "waiting for groups", "step 3 / 1000", "rollout:r0"):
        assert part in text
    assert "\x1b" not in text, "a script reads it"


def test_scripts_get_the_verdict_and_the_numbers_as_json(
    control: ControlState, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(*overrides_of(config, tmp_path), once=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["run_id"], found["phase"], found["verdict"]["level"]) == (config.run.id, "running", "good")
    assert found["verdict"]["parts"]["ess"]["numbers"]["token_ess"] == 0.93
    assert (found["numbers"]["step"], found["numbers"]["staleness_max"]) == (3, 4)


def test_a_run_that_nobody_has_begun_has_a_verdict_too(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(*overrides_of(config, tmp_path), once=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"]["level"], found["numbers"]) == ("idle", {})


def test_where_nobody_answers_it_says_whom_it_asked(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(StreamError, match=f"no control plane answers at http://127.0.0.1:{port}"):
        show(f"http://127.0.0.1:{port}/", [], once=True, as_json=False)
    with pytest.raises(StreamError, match="Redis"):
        show(*overrides_at(port, tmp_path), once=True, as_json=False)
    with pytest.raises(ConfigError, match="neither a run folder nor a YAML file"):
        show(str(tmp_path / "nothing"), [], once=True, as_json=False)


def overrides_at(port: int, tmp_path: Path) -> tuple[str, list[str]]:
    """A YAML file that names a Redis which is not there."""
    file = tmp_path / "gone.yaml"
    file.write_text(f"run: {{id: gone}}\nredis: {{url: redis://127.0.0.1:{port}}}\n")
    return str(file), []


def test_what_was_seen_last_stays_and_the_verdict_says_that_nobody_answers(
    control: ControlState, config: Config
) -> None:
    class Ends:
        """The run's Redis until it is gone."""

        gone = False

        def __init__(self) -> None:
            self.redis = RedisSource(config)

        def steps(self) -> int:
            return self.redis.steps()

        def status(self) -> RunStatus:
            if self.gone:
                raise StreamError("Redis cannot be reached")
            return self.redis.status()

        def history(self, last: int) -> Sequence[Row]:
            return self.redis.history(last)

        def close(self) -> None:
            self.redis.close()

    source = Ends()
    eyes = Eyes(source)
    eyes.look()
    source.gone = True
    eyes.look()
    source.close()
    assert (eyes.verdict.level, eyes.verdict.sentence) == ("bad", "Redis cannot be reached")
    assert told(eyes)["numbers"]["step"] == 3


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN", "operate")
    assert HttpSource("http://127.0.0.1")._token == "operate"
    monkeypatch.setenv("TRUSTBATCH__CONTROL_PLANE__READ_TOKEN", "read")
    assert HttpSource("http://127.0.0.1")._token == "read", "no more rights than it needs"


def test_it_is_a_command() -> None:
    assert "top" in {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
