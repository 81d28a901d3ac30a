"""Everything that can be done to a run so that an alert fires, and which ones must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from shared.redis_client import memory_of
from shared.stream import backlog
from tests.chaos.processes import kill
from tests.deploy.alerts.forger import claiming, garbage, good
from tests.deploy.alerts.run import SERVERS, MonitoredRun
from tests.deploy.monitoring import until

Cause = Callable[[MonitoredRun], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong while its block lasts."""

    text: str
    alerts: tuple[str, ...]
    cause: Cause
    ends_the_run: bool = False


def _full_redis(run: MonitoredRun) -> Iterator[None]:
    run.client.config_set("maxmemory", int(memory_of(run.client).used * 1.1))
    try:
        yield
    finally:
        run.client.config_set("maxmemory", 512 * 2**20)


def _trimmed(run: MonitoredRun) -> Iterator[None]:
    with run.stopped("learner"):
        full = run.config.learner.groups_per_batch * 4
        until("groups that wait", 30, lambda: backlog(run.client, run.keys).unapplied > full)
        run.client.xtrim(run.keys.groups, maxlen=0, approximate=False)
    yield


def _filled(run: MonitoredRun) -> Iterator[None]:
    with run.stopped("r0"), run.stopped("r1"):
        few = run.config.learner.groups_per_batch
        until("an empty stream", 30, lambda: backlog(run.client, run.keys).unapplied < few)
        with run.stopped("learner"):
            for _ in range(16):
                until("a prompt", 30, lambda: run.forger.append(lambda group: garbage(group) + bytes(62 * 2**10)))
            yield


def _killed(run: MonitoredRun) -> Iterator[None]:
    for server in SERVERS:
        kill(run.children.pop(server))
    try:
        yield
    finally:
        for server in SERVERS:
            run.start(server)


def _redis_killed(run: MonitoredRun) -> Iterator[None]:
    run.redis.kill()
    try:
        yield
    finally:
        run.redis.start()


@contextmanager
def _once(run: MonitoredRun, forge: Callable[..., bytes]) -> Iterator[None]:
    until("a prompt to forge a group for", 10, lambda: run.forger.append(forge))
    yield


FAULTS = (
    Fault("entries that nobody can decode", ("TrustbatchDeadLetters",), lambda run: run.forger.at_work(garbage)),
    Fault(
        "groups of versions long gone",
        ("TrustbatchGroupsTooStale",),
        lambda run: run.forger.at_work(good, older=60),
    ),
    Fault(
        "groups thirty versions older than the credit, let in by `slack`",
        ("TrustbatchStalenessOverAsked",),
        lambda run: run.forger.at_work(good, older=40),
    ),
    Fault(
        "impossible log-probs in completions of one token",
        ("TrustbatchDropsBiased", "TrustbatchDeadLetters"),
        lambda run: run.forger.at_work(claiming(1.0), tokens=1),
    ),
    Fault(
        "completions that claim to have been all but impossible, so that they carry all weight",
        ("TrustbatchEssCollapse",),
        lambda run: run.forger.at_work(claiming(-30.0)),
    ),
    Fault(
        "log-probs whose ratio has no finite gradient",
        ("TrustbatchStepsSkipped",),
        lambda run: _once(run, claiming(-5000.0)),
    ),
    Fault(
        "a server whose engine has other weights than were published",
        ("TrustbatchServerUnproven", "TrustbatchWeightSyncFailing"),
        lambda run: run.crooked("wrong-weights", "r1"),
    ),
    Fault(
        "a server whose engine is less exact",
        ("TrustbatchNumericsFloorRising",),
        lambda run: run.crooked("noisy", "r1"),
    ),
    Fault(
        "a server that cannot read the store",
        ("TrustbatchWeightSyncFailing", "TrustbatchServerBehind"),
        lambda run: run.crooked("unreadable", "r1"),
    ),
    Fault("servers that take a second longer", ("TrustbatchStarving",), lambda run: run.crooked("slow", *SERVERS)),
    Fault(
        "a learner that stands still (SIGSTOP)",
        ("TrustbatchTargetDown", "TrustbatchComponentMissing", "TrustbatchNoProgress"),
        lambda run: run.stopped("learner"),
    ),
    Fault("entries taken out of the stream", ("TrustbatchGroupsLost",), contextmanager(_trimmed)),
    Fault("a stream filled to its byte credit", ("TrustbatchBacklogGrowing",), contextmanager(_filled)),
    Fault("a Redis with little more memory than it uses", ("TrustbatchRedisMemory",), contextmanager(_full_redis)),
    Fault(
        "all rollout servers killed",
        ("TrustbatchTargetDown", "TrustbatchComponentMissing"),
        contextmanager(_killed),
    ),
    Fault("Redis killed", ("TrustbatchRedisDown",), contextmanager(_redis_killed)),
    Fault(
        "a learner that can take no finite step any more",
        ("TrustbatchRunFailed",),
        lambda run: run.forger.at_work(claiming(-5000.0)),
        ends_the_run=True,
    ),
)
