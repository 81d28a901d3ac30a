"""The supervisor over real processes: they start in order, stop in order, and nothing outlives the run."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from services import run_folder, supervisor
from services.children import KILLED_S
from services.launch import Programs
from services.outcome import Outcome
from services.supervisor import LOOK_S, NAP_S, Supervisor
from services.terminal import PlainScreen
from shared.config import Config, load_config
from shared.control import ControlState
from shared.errors import ConfigError
from shared.keys import Keys
from shared.process import StopFlag
from shared.redis_client import connect
from tests.services import rows

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
FAKE = str(Path(__file__).with_name("fake_process.py"))
PROMISED_S = 10.0  # from the first Ctrl-C until nothing is left
GONE_S = 60.0  # on a machine that does other work too

DRIVER = """
import json, os, sys
from rich.console import Console
from services import supervisor
from services.launch import Programs
from services.supervisor import Supervisor
from services.terminal import PlainScreen
from shared.config import load_config
from shared.errors import ConfigError
from shared.process import StopFlag
stop = StopFlag().install()
supervisor.STOP_S = float(os.environ.get("STOP_S", supervisor.STOP_S))
config = load_config(None, json.loads(sys.argv[1]), {})
outcome = Supervisor(config, PlainScreen(Console()), stop, programs=Programs(**json.loads(sys.argv[2]))).run()
print(outcome.reason)
sys.exit(outcome.exit_code)
"""


@dataclass
class Stack:
    """A run folder and what the supervisor is to start in it."""

    folder: Path

    @property
    def overrides(self) -> list[str]:
        return [f"run.folder={self.folder}", "run.id=stack", "rollout.servers=2", "learner.steps=3"]

    @property
    def config(self) -> Config:
        return load_config(None, self.overrides, {})

    def pids(self) -> list[int]:
        """Every process that the fake ones have reported, and the run's Redis."""
        fakes = [int(pid) for pid in read(self.folder / "pids").split()]
        redis = [
            int(line.split(":")[0]) for line in read(self.folder / "logs" / "redis.log").splitlines() if "Ready" in line
        ]
        return fakes + redis

    def redis_port(self) -> int:
        port = urlsplit(run_folder.recorded_url(self.folder)).port
        assert port
        return int(port)

    def assert_nothing_is_left(self) -> None:
        """No process, no port, no lock, within the deadline."""
        pids = self.pids()
        assert len(pids) >= 3
        wait_for(lambda: not any(alive(pid) for pid in pids), GONE_S, f"{pids} to be gone")
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.redis_port())) != 0
        lock = run_folder.hold(self.folder)
        assert lock is not None
        os.close(lock)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "run"
    folder.mkdir()
    return Stack(folder)


def programs(learner: str = "stay", rollout: str = "stay", control_plane: str = "stay") -> Programs:
    return Programs((FAKE, "learner", learner), (FAKE, "rollout", rollout), (FAKE, "control-plane", control_plane))


def run(stack: Stack, started: Programs) -> tuple[Outcome, str]:
    """Runs the supervisor here; returns how it ended and what it showed."""
    shown = io.StringIO()
    screen = PlainScreen(Console(file=shown, width=200), every_s=0.2)
    outcome = Supervisor(stack.config, screen, StopFlag(), programs=started).run()
    return outcome, shown.getvalue()


@pytest.fixture
def drive(stack: Stack) -> Iterator[Callable[[Programs], subprocess.Popen[str]]]:
    """Runs the supervisor in a process of its own, which a test may interrupt or kill."""
    from dataclasses import asdict

    drivers: list[subprocess.Popen[str]] = []

    def start(started: Programs, *overrides: str) -> subprocess.Popen[str]:
        arguments = [json.dumps([*stack.overrides, *overrides]), json.dumps(asdict(started))]
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        drivers.append(driver)
        return driver

    yield start
    for driver in drivers:
        driver.kill()
        driver.communicate()


def test_a_run_that_finishes_ends_with_zero_a_summary_and_nothing_left(stack: Stack) -> None:
    outcome, shown = run(stack, programs(learner="finish"))
    assert outcome.exit_code == 0
    assert outcome.reason == "finished: all 3 steps are done"
    assert outcome.summary is not None
    assert outcome.summary["steps"] == 3
    assert outcome.summary["wall_seconds"] > 0
    assert outcome.summary["numerics_floor_max_nats"] == 3e-5, "of a rollout server that has left by now"
    assert (stack.folder / "plot.png").stat().st_size > 10_000
    assert "http://127.0.0.1:1/" in shown, "the dashboard's address"
    stored = load_config(stack.folder / "config.yaml", (), {})
    assert stored.redis.url == f"redis://127.0.0.1:{stack.redis_port()}", "others join with the stored configuration"
    assert stored.run == stack.config.run
    stack.assert_nothing_is_left()


@pytest.mark.parametrize(("behaviour", "how"), [("die", "left with exit code 3"), ("killed", "was killed by SIGKILL")])
def test_a_child_that_dies_ends_the_run_with_its_name_and_its_fate(stack: Stack, behaviour: str, how: str) -> None:
    outcome, _ = run(stack, programs(rollout=behaviour))
    assert outcome.exit_code == 1
    assert f"rollout:r0 {how}" in outcome.reason or f"rollout:r1 {how}" in outcome.reason
    stack.assert_nothing_is_left()


def test_the_last_log_lines_of_a_dead_child_are_shown_readably(stack: Stack) -> None:
    outcome, _ = run(stack, programs(learner="die"))
    assert "learner left with exit code 3" in outcome.reason
    assert "10:11:12 error   failed reason=the disk is full" in outcome.reason
    assert str(stack.folder / "logs" / "learner.jsonl") in outcome.reason


def test_a_learner_that_fails_is_reported_although_the_rollout_servers_leave_first(stack: Stack) -> None:
    outcome, _ = run(stack, programs(learner="fail", rollout="obey"))
    assert outcome.exit_code == 1
    assert outcome.short == "the learner has failed: betas must be in [0, 1)"
    assert outcome.reason.startswith(f"{outcome.short}\nlearner left with exit code 1; its last log lines")


def test_the_summary_of_a_run_whose_redis_dies_names_it_shortly_and_keeps_the_floor(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs())
    wait_for(lambda: read(stack.folder / "ready").count("stay") == 4, 60, "four processes")
    rows.write_lines(stack.folder / "history.jsonl", [rows.step(1, [0], floor_max_nats=1e-6)])
    looked = connect(load_config(stack.folder / "config.yaml", (), {}))
    wait_for(lambda: len(ControlState(looked, Keys("stack")).members()) == 4, 60, "four heartbeats")
    time.sleep(LOOK_S + NAP_S)  # one whole look of the supervisor's at them
    looked.close()
    os.kill(stack.pids()[-1], signal.SIGKILL)
    shown, _ = driver.communicate(timeout=GONE_S)
    summary = json.loads(read(stack.folder / "summary.json"))
    assert "redis was killed by SIGKILL; its last log lines" in shown
    assert "redis was killed by SIGKILL" in summary["finished_reason"]
    assert "log lines" not in summary["finished_reason"]
    assert summary["numerics_floor_max_nats"] == 3e-5, "what the rollout servers reported while Redis lived"


def test_a_rollout_server_that_leaves_in_order_is_reported_and_the_last_one_ends_the_run(stack: Stack) -> None:
    outcome, shown = run(stack, programs(rollout="leave"))
    assert "rollout:r0 left in order" in shown
    assert "rollout:r1 left in order" in shown
    assert outcome.exit_code == 1
    assert "the last rollout server has left" in outcome.reason


def test_a_learner_that_leaves_before_the_run_is_finished_is_a_failure(stack: Stack) -> None:
    outcome, _ = run(stack, programs(learner="leave"))
    assert outcome.exit_code == 1
    assert "not finished" in outcome.reason


def test_ctrl_c_stops_the_learner_first_and_redis_last(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs())
    wait_for(lambda: read(stack.folder / "ready").count("stay") == 4, 60, "four processes")
    driver.send_signal(signal.SIGINT)
    shown, _ = driver.communicate(timeout=GONE_S)
    assert driver.returncode == 128 + signal.SIGINT
    stopped = read(stack.folder / "stopped").split()
    assert stopped[0] == "learner"
    assert sorted(stopped[1:3]) == ["rollout:r0", "rollout:r1"]
    assert stopped[3] == "control-plane"
    assert "killed" not in shown
    assert f"stopped by SIGINT; go on with it:\n  trustbatch up --config {stack.folder}/config.yaml --resume" in shown
    stack.assert_nothing_is_left()


def test_what_a_stop_waits_for_adds_up_to_less_than_was_promised() -> None:
    """And a second for the kernel to end what was killed, which takes it milliseconds."""
    assert supervisor.STOP_S + supervisor.REDIS_STOP_S + KILLED_S <= PROMISED_S


def test_ctrl_c_with_a_child_that_will_not_stop_kills_it(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs(learner="stubborn"))
    wait_for(lambda: "stubborn" in read(stack.folder / "ready"), 60, "the stubborn process")
    driver.send_signal(signal.SIGTERM)
    shown, _ = driver.communicate(timeout=GONE_S)
    assert driver.returncode == 128 + signal.SIGTERM
    assert "learner did not stop in time and was killed" in shown
    stack.assert_nothing_is_left()


def test_who_asks_twice_does_not_wait(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOP_S", "3600")
    driver = drive(programs(learner="stubborn"))
    wait_for(lambda: "stubborn" in read(stack.folder / "ready"), 60, "the stubborn process")
    driver.send_signal(signal.SIGINT)
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.0, 60, "a second request")
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=GONE_S)


def test_ctrl_c_while_the_small_model_is_made_leaves_nothing(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs(), f"model.path={stack.folder / 'tiny'}", "model.tiny={}")
    wait_for((stack.folder / "logs" / "examples.jsonl").exists, 60, "the examples to be made")
    driver.send_signal(signal.SIGINT)
    shown, _ = driver.communicate(timeout=GONE_S)
    assert driver.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT" in shown
    assert not read(stack.folder / "pids"), "nothing of the loop is started"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", stack.redis_port())) != 0


def test_nothing_outlives_a_supervisor_that_is_killed(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs(learner="stubborn"))
    wait_for(lambda: len(read(stack.folder / "ready").split()) == 4, 60, "four processes")
    assert len(stack.pids()) == 9, "four processes, their children and Redis"
    driver.kill()
    stack.assert_nothing_is_left()


def test_a_resumed_run_keeps_its_redis_data_and_its_port(stack: Stack) -> None:
    run(stack, programs(learner="finish"))
    reported = json.loads(read(stack.folder / "summary.json"))
    (stack.folder / "summary.json").write_text(json.dumps({**reported, "wall_seconds": 1000.0}))
    port = stack.redis_port()
    shown = io.StringIO()
    screen = PlainScreen(Console(file=shown, width=200))
    outcome = Supervisor(stack.config, screen, StopFlag(), resumed=True, programs=programs(learner="finish")).run()
    assert outcome.exit_code == 0
    assert stack.redis_port() == port
    assert outcome.summary is not None
    assert outcome.summary["finished_reason"] == "finished: all 3 steps are done"
    assert 1000.0 < outcome.summary["wall_seconds"] < 1060.0, "both starts together"


def test_without_rollout_servers_the_operator_is_told_how_to_start_one(
    stack: Stack, drive: Callable[..., subprocess.Popen[str]]
) -> None:
    driver = drive(programs(), "rollout.servers=0")
    wait_for(lambda: read(stack.folder / "ready").count("stay") == 2, 60, "two processes")
    time.sleep(LOOK_S + NAP_S)  # one whole look of the supervisor's
    driver.send_signal(signal.SIGINT)
    shown, _ = driver.communicate(timeout=GONE_S)
    assert f"start one: trustbatch rollout --config {stack.folder}/config.yaml --server-id r0" in shown


def test_a_folder_in_use_is_refused_by_name(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_WAIT_S", 0.2)
    lock = run_folder.hold(stack.folder)
    assert lock is not None
    try:
        with pytest.raises(ConfigError, match="is held by a `trustbatch up` that still runs"):
            run_folder.hold(stack.folder)
    finally:
        os.close(lock)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def alive(pid: int) -> bool:
    """True while a process runs; one that nobody has reaped yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(done: Callable[[], bool], seconds: float, what: str) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, f"waited {seconds} s for {what}"
        time.sleep(0.05)
