"""Whoever dies, and however: soon nothing of the run is left."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shared.config import load_config
from tests.system.conftest import Run, alive, descendants, wait_for

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

GONE_S = 30.0  # ten seconds are promised; a machine that does other work too may take longer
SMALL = ("learner.groups_per_batch=8", "learner.steps=100000")
TRANSFORMERS = ("rollout.engine={kind: transformers, device: cpu}", *SMALL)


def assert_gone(pids: set[int]) -> None:
    wait_for(f"all of {pids} to be gone", GONE_S, lambda: not any(alive(pid) for pid in pids))


def assert_port_is_free(run: Run) -> None:
    port = urlsplit(str(load_config(run.folder / "config.yaml", [], {}).redis.url)).port
    assert port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def engine_pid(run: Run) -> int:
    server = run.pid_of("rollout:r0")

    def engine() -> int | None:
        names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in descendants(server)}
        return next((pid for pid, name in names.items() if "Engine" in name), None)

    return wait_for("vLLM's engine process", 60, engine)


@pytest.mark.vllm
@pytest.mark.parametrize("victim", ["supervisor", "rollout server", "engine"])
def test_after_a_sigkill_nothing_is_left(make_run: Callable[..., Run], victim: str) -> None:
    run = make_run("killed", *SMALL).start()
    run.reach_step(2)
    everything = run.everything()
    assert run.process is not None
    pids = {
        "supervisor": lambda: run.process.pid if run.process else 0,
        "rollout server": lambda: run.pid_of("rollout:r0"),
        "engine": lambda: engine_pid(run),
    }
    os.kill(pids[victim](), signal.SIGKILL)
    code = run.wait(60)
    assert_gone(everything)
    assert_port_is_free(run)
    if victim != "supervisor":
        assert code == 1
        assert "rollout:r0" in run.output
        assert "its last log lines" in run.output


@pytest.mark.parametrize("moment", ["at once", "while it starts", "while it runs"])
def test_ctrl_c_stops_everything(make_run: Callable[..., Run], moment: str) -> None:
    run = make_run("stopped", *TRANSFORMERS).start()
    if moment == "while it starts":
        wait_for("the first process", 60, (run.folder / "logs" / "learner.jsonl").exists)
    elif moment == "while it runs":
        run.reach_step(2)
    everything = run.everything()
    assert run.process is not None
    run.process.send_signal(signal.SIGINT)
    code = run.wait(GONE_S)
    assert_gone(everything)
    assert code in ((130,) if moment != "at once" else (130, -signal.SIGINT))
    if moment == "while it runs":
        assert_port_is_free(run)
        assert "stopped by SIGINT; go on with it:" in run.output
        stopped_at = run.last_step
        run.start("--resume").reach_step(stopped_at + 1)


def test_a_second_command_cannot_take_a_folder_that_is_in_use(make_run: Callable[..., Run]) -> None:
    run = make_run("taken", *TRANSFORMERS).start()
    run.reach_step(1)
    second = make_run("taken", *TRANSFORMERS).start("--resume")
    assert second.wait(60) != 0
    assert run.process is not None
    assert run.process.poll() is None, "the first goes on"
