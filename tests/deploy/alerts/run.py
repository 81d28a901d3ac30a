"""A small real run, scraped by a real Prometheus with the project's own rules made fast."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.generate import RULES
from services.children import Child
from shared.config import Config, load_config
from shared.config.load import dump_config
from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import connect
from tests.chaos.processes import kill, send, start_python
from tests.conftest import RedisServer, free_port
from tests.deploy.alerts.crooked import FLAGS
from tests.deploy.alerts.forger import Forger
from tests.deploy.monitoring import Prometheus, Target, faster, until
from tests.rollout.models import save_model

FASTER = 100.0  # than the rules as they are: five minutes are three seconds
SERVERS = ("r0", "r1")
REDIS = "--appendonly yes --appendfsync always --maxmemory-policy noeviction --maxmemory 512mb"
SETTINGS = (
    "control_plane={auth: none, requests_per_minute: 100000}",
    "rollout={engine: {kind: transformers, device: cpu}, group_size: 4, groups_in_flight: 4}",
    "rollout.max_refused_versions=1000",
    "rollout.sampling.max_tokens=6",
    "environment={kind: python, path: 'tests.rollout.worlds:Shade'}",
    "evaluation={prompts: 1, every: 100000}",
    "admission={max_staleness: 8, max_bytes: 1048576, lease_s: 3, evict: {name: too_stale, slack: 40}}",
    "learner={groups_per_batch: 4, passes: 4, publish_every: 4, checkpoint_every: 40, steps: 1000000, record_bytes: 0}",
    "learner.shadows=[{name: reinforce}]",
    "learner.learning_rate=1e-5",
    "learner.idle_deadline_s=300",
)


class MonitoredRun:
    """`with MonitoredRun(folder) as run:` ends every process at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: dict[str, Child] = {}
        self.ports = {name: free_port() for name in ("learner", "control-plane", *SERVERS)}

    def __enter__(self) -> MonitoredRun:
        with ExitStack() as ending:
            self._begin(ending)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def _begin(self, ending: ExitStack) -> None:
        folder = self.folder
        (folder / "redis").mkdir(parents=True)
        self.redis = RedisServer(folder / "redis", *REDIS.split())
        ending.callback(self.redis.kill)
        model = save_model(folder / "model")
        own = [f"redis.url={self.redis.url}", "run.id=alerts", f"run.folder={folder / 'run'}", f"model.path={model}"]
        self.config: Config = load_config(None, [*SETTINGS, *own], {})
        (folder / "config.yaml").write_text(dump_config(self.config))
        self.client, self.keys = connect(self.config), Keys(self.config.run.id)
        self.control = ControlState(self.client, self.keys)
        self.forger = Forger(self.config)
        jobs = {name: "rollout" if name in SERVERS else name for name in self.ports}
        targets = [Target(jobs[name], f"127.0.0.1:{port}") for name, port in self.ports.items()]
        self.prometheus = Prometheus(folder / "prometheus", targets, faster(RULES.read_text(), FASTER))
        ending.callback(self.prometheus.stop)
        for name in self.ports:
            self.start(name)
            ending.callback(self._end, name)

    def _end(self, name: str) -> None:
        if name in self.children:
            kill(self.children[name])

    def start(self, name: str) -> None:
        """Starts one of its processes, or starts it again."""
        words = ["--config", str(self.folder / "config.yaml"), "--set"]
        if name == "control-plane":
            words = ["services.control_plane", *words, f"control_plane.port={self.ports[name]}"]
        elif name == "learner":
            words = ["learner", *words, f"metrics.port={self.ports[name]}"]
        else:
            words = ["tests.deploy.alerts.crooked", *words, f"metrics.port={self.ports[name]}", "--server-id", name]
            (self.folder / name).mkdir(exist_ok=True)
        environ = {FLAGS: str(self.folder / name)}
        self.children[name] = start_python(name, self.folder / f"{name}.log", words, environ)

    def all_alive(self) -> bool:
        """Raises AssertionError where a process has ended."""
        for name, child in self.children.items():
            assert child.exit_code() is None, f"{name}: {(self.folder / f'{name}.log').read_text()[-3000:]}"
        return True

    def wait(self, what: str, seconds: float, look: object) -> float:
        """Seconds until `look` is true; fails at once where a process has ended."""
        assert callable(look)
        return until(what, seconds, lambda: self.all_alive() and look())

    @contextmanager
    def crooked(self, flag: str, *servers: str) -> Iterator[None]:
        """Servers that do wrong within the block."""
        flags = [self.folder / server / flag for server in servers]
        for path in flags:
            path.touch()
        try:
            yield
        finally:
            for path in flags:
                path.unlink()

    @contextmanager
    def stopped(self, name: str) -> Iterator[None]:
        """A process that stands still within the block."""
        send(self.children[name], signal.SIGSTOP)
        try:
            yield
        finally:
            send(self.children[name], signal.SIGCONT)
