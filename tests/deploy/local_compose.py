"""docker-compose.yml without Docker: every service's command, environment, health check and restarts, as a process.

What a container has for itself is mapped: /data and /run/secrets lie in a folder of the test, a service's own 9400 or
8400 is one on a loopback address of its own, and the name `redis` is an address.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import free_port
from tests.deploy.composed import ROOT, services
from tests.redis7 import binary

TRUSTBATCH = Path(sys.executable).with_name("trustbatch")
LOOK_S = 0.5


class Container:
    """One service as a process."""

    def __init__(self, name: str, service: dict[str, Any], stack: Stack, address: str) -> None:
        self.name = name
        self.service = service
        self.starts = 0
        self.address = address
        self._stack = stack
        self.process: subprocess.Popen[bytes] | None = None
        self.log = stack.folder / f"{name}.log"
        given = {key: str(value) for key, value in service.get("environment", {}).items()}
        self.environ = {key: self._mapped(value) for key, value in given.items()} | stack.extra.get(name, {})
        self.environ |= {"PATH": f"{Path(binary()).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def _mapped(self, text: str) -> str:
        pairs = {
            "/etc/trustbatch/run.yaml": str(self._stack.folder / f"{self.name}.yaml"),
            "/etc/trustbatch/redis": str(ROOT / "deploy" / "redis"),
            "/run/secrets/": f"{self._stack.folder}/secrets/",
            "/data/": f"{self._stack.folder}/data/",
            "redis://redis:6379": f"redis://127.0.0.1:{self._stack.redis_port}",
            "0.0.0.0": self.address,
            "http://127.0.0.1": f"http://{self.address}",
        }
        for old, new in pairs.items():
            text = text.replace(old, new)
        return text

    def start(self) -> None:
        """As the container's engine would: the mounted file, the entry point, the command."""
        for volume in self.service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if target == "/etc/trustbatch/run.yaml":
                (self._stack.folder / f"{self.name}.yaml").write_text(self._mapped((ROOT / source).read_text()))
        entry = self.service.get("entrypoint") or [str(TRUSTBATCH)]
        command = [self._mapped(word) for word in [*entry, *self.service.get("command", [])]]
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, cwd=self._stack.folder)

    @property
    def exit_code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    @property
    def healthy(self) -> bool:
        """What its health check says."""
        if self.process is None or self.exit_code is not None:
            return False
        kind, *test = self.service["healthcheck"]["test"]
        assert kind == "CMD"
        words = [sys.executable if word == "python" else self._mapped(word) for word in test]
        return subprocess.run(words, env=self.environ, capture_output=True, cwd=ROOT, check=False).returncode == 0

    def restart_if_it_should(self) -> None:
        """By the service's restart policy."""
        if self.process is None or self.exit_code is None:
            return
        policy, _, most = self.service["restart"].partition(":")
        if policy == "unless-stopped" or (policy == "on-failure" and self.exit_code != 0):
            assert not most or self.starts <= int(most)
            self.start()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Stack:
    """The services of one profile, by name."""

    def __init__(self, folder: Path, profile: str, names: list[str], extra: dict[str, dict[str, str]]) -> None:
        self.folder = folder
        self.extra = extra
        self.redis_port = free_port()
        for sub in ("data", "secrets", "run"):
            (folder / sub).mkdir()
        extra["redis"] = {
            "REDIS_PORT": str(self.redis_port),
            "REDIS_DATA": f"{folder}/data",
            "REDIS_RUN": f"{folder}/run",
        }
        network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"  # nobody else's ports
        here = services(profile)
        self.containers = {
            name: Container(name, here[name], self, f"{network}.{number}") for number, name in enumerate(names, start=1)
        }

    def up(self, deadline_s: float) -> None:
        """Starts every service once those that it depends on are as they should be."""
        waiting = list(self.containers.values())

        def started() -> bool:
            for container in list(waiting):
                if all(self._is(other, how) for other, how in container.service.get("depends_on", {}).items()):
                    container.start()
                    waiting.remove(container)
            return not waiting

        self.until(started, "every service to be started", deadline_s)

    def until(self, condition: Callable[[], bool], what: str, deadline_s: float) -> None:
        """Watches, and restarts what should be, until the condition holds."""
        ends = time.monotonic() + deadline_s
        while not condition():
            for container in self.containers.values():
                container.restart_if_it_should()
            assert time.monotonic() < ends, f"waited {deadline_s} s for {what}\n{self.tails()}"
            time.sleep(LOOK_S)

    def tails(self) -> str:
        logs = {name: container.log for name, container in self.containers.items() if container.log.exists()}
        return "\n".join(f"--- {name}\n{log.read_text(errors='replace')[-1500:]}" for name, log in logs.items())

    def down(self) -> None:
        for container in reversed(self.containers.values()):
            container.end()

    def _is(self, name: str, how: dict[str, str]) -> bool:
        container = self.containers[name]
        if how["condition"] == "service_healthy":
            return container.healthy
        if container.process is None or container.exit_code is None:
            return False
        assert container.exit_code == 0, f"{name} left with {container.exit_code}\n{self.tails()}"
        return True
