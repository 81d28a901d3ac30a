"""10. All producers gone; the learner gone; the control plane gone; a metrics scraper that hangs."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from shared.control import LEARNER
from tests.chaos.processes import ended, kill, wait_for
from tests.chaos.result import ScenarioResult
from tests.chaos.stack import Stack

SCRAPERS = 50


def run(short: bool, workdir: Path) -> ScenarioResult:
    """Who is not needed is not missed; who is needed is waited for until the deadline, and named."""
    result = ScenarioResult(10, "producers, learner, control plane gone; hanging scraper", short)
    idle_s = 6.0 if short else 60.0
    with Stack(workdir, 120, settings=(f"learner.idle_deadline_s={idle_s}", "admission.lease_s=2")) as stack:
        file = str(stack.folder / "config.yaml")
        plane = stack.start_other("control-plane", "services.control_plane", "--config", file)
        learner = stack.start_learner()
        load = stack.start_load("--rate", "150")
        stack.reach(5, 60)
        wait_for("the control plane to serve", 30, lambda: stack.states("control-plane"))
        stack.signal(plane, signal.SIGSTOP)
        result.check("goes on while the control plane stands still", _goes_on(stack))
        stack.fault()
        kill(plane)
        result.check("goes on without the control plane", _goes_on(stack))
        scrapers = _hang(str((stack.control.status_of(LEARNER) or {})["metrics"]))
        stack.fault()
        result.check(f"goes on with {SCRAPERS} hanging scrapers", _goes_on(stack))
        for scraper in scrapers:
            scraper.close()
        recovery_s = max(stack.recoveries())
        stack.kill(load)
        began = time.monotonic()
        code = ended(learner, idle_s + 20)
        waited = time.monotonic() - began
        phase, reason = stack.phase()
        result.check("without producers the learner stops", code == 1 and phase == "failed", f"{code}, {phase}")
        result.check("and says so", "waited" in reason and "rollout servers: none" in reason, reason)
        result.check("by its deadline", idle_s <= waited < idle_s + 8, f"{waited:.1f} s, deadline {idle_s:g} s")
        stack.control.set_phase("running")
        load = stack.start_load("--rate", "150")
        began = time.monotonic()
        code = ended(load, idle_s + 20)
        waited = time.monotonic() - began
        said = "a learner's heartbeat, in vain" in stack.log_of("load")
        result.check("without a learner the producers stop and say so", code == 1 and said, f"{waited:.1f} s")
        result.check("by their deadline", waited < idle_s + 12, f"{waited:.1f} s, deadline {idle_s:g} s")
        stack.start_learner()
        stack.start_load("--rate", "600")
        stack.until_phase("finished", 120)
        stack.fill_in(result)
    result.longest_recovery_s = recovery_s
    return result


def _goes_on(stack: Stack) -> bool:
    steps = stack.step_of_learner()
    stack.reach(steps + 5, 30)
    return True


def _hang(address: str) -> list[socket.socket]:
    """Connections that ask for half of something and never read."""
    url = urlsplit(address)
    found = []
    for _ in range(SCRAPERS):
        connection = socket.create_connection((url.hostname or "", url.port or 0), timeout=5)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        found.append(connection)
    return found
