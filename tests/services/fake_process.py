"""A process of a run that keeps only the contract: guard, heartbeat, a child of its own, an orderly stop.

python fake_process.py KIND BEHAVIOUR --config FILE [--server-id ID]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from shared.config import Config, load_config
from shared.control import ControlState
from shared.heartbeat import Heartbeat
from shared.keys import Keys
from shared.process import StopFlag, guard
from shared.redis_client import connect
from tests.services import rows


def main() -> int:
    guard(int(os.environ["TRUSTBATCH_PARENT_PID"]))
    stop = StopFlag().install()
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("behaviour")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--server-id", default="")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    name = f"rollout:{arguments.server_id}" if arguments.kind == "rollout" else arguments.kind
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    note(config, "pids", f"{os.getpid()} {child.pid}")
    control = ControlState(connect(config), Keys(config.run.id))
    beat = Heartbeat(
        control, name, 10.0, kind=arguments.kind, pid=os.getpid(), address="http://127.0.0.1:1/", proof_max_nats=3e-5
    ).start()
    code = behave(arguments.behaviour, config, control, stop, beat)
    if arguments.kind == "learner" and stop:
        control.set_phase("stopped", stop.reason)
    beat.stop()
    note(config, "stopped", name)
    return code


def behave(behaviour: str, config: Config, control: ControlState, stop: StopFlag, beat: Heartbeat) -> int:
    """What this process does until it ends; returns its exit code."""
    beat.set_state(behaviour)
    if behaviour == "finish":
        finish(config, control)
    elif behaviour == "die":
        line = {"event": "failed", "reason": "the disk is full", "level": "error", "timestamp": "2026-01-01T10:11:12Z"}
        print(json.dumps(line), file=sys.stderr, flush=True)
        return 3
    elif behaviour == "fail":
        while not has_left(config, "rollout:r0"):
            control.set_phase("failed", "betas must be in [0, 1)")
            time.sleep(0.05)
        time.sleep(0.5)
        return 1
    elif behaviour == "obey":
        while control.phase()[0] not in ("failed", "finished") and not stop:
            time.sleep(0.02)
    elif behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "leave":
        time.sleep(0.5)
    elif behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(config, "ready", behaviour)
        time.sleep(600)
    else:
        note(config, "ready", behaviour)
        while not stop:
            time.sleep(0.02)
    return 0


def has_left(config: Config, name: str) -> bool:
    """True once the process of this name has written down that it stopped."""
    stopped = config.run.folder / "stopped"
    return stopped.exists() and name in stopped.read_text()


def finish(config: Config, control: ControlState) -> None:
    """Three steps, as the learner records them, and the end; not before the others are there."""
    ends = time.monotonic() + 60
    while len(control.members()) < 4:
        assert time.monotonic() < ends
        time.sleep(0.05)
    steps = [rows.step(n, [n], reward_mean=0.1 * n) for n in (1, 2, 3)]
    rows.write_lines(config.run.folder / "history.jsonl", steps)
    for row in steps:
        control.add_history(row)
    control.set_phase("finished", "all 3 steps are done")


def note(config: Config, name: str, text: str) -> None:
    """Appends a line to a file in the run folder."""
    with (config.run.folder / name).open("a") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
