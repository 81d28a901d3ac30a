"""Control state in Redis: who lives, what is wanted, where the run stands. Off the data path.

Components write their own heartbeat; the operator (through the control plane) writes what is desired; the
learner writes phase, latest version and history. Nobody waits for the control plane.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shared import scripts, untrusted
from shared.errors import DataLossError, FencedError
from shared.history import History
from shared.keys import Keys
from shared.redis_client import Client, Script, translated
from shared.steering import Steering
from shared.wishes import ADMISSION, EVENT_ROWS, LAG, PAUSED, Wish, Wishes, event_row

EXAMPLE_ROWS = 1_000
LEARNER = "learner"
COPY = "="  # behind a parent: the version has that one's weights

Phase = Literal["starting", "running", "paused", "finished", "failed", "stopped"]


@dataclass(frozen=True)
class Latest:
    """The newest published version."""

    policy_version: int
    parent: int  # -1 for the starting model
    step: int
    depth: int = 0  # publishes between the starting model and it
    credit: int = 0  # versions of staleness credit that servers have now; 0: all that max_staleness allows
    in_order: bool = False  # the longest lease uses credit up, so that no other group overtakes it by too much
    oldest: int = -1  # where lag ends: of the ancestors before this one the store has not all; -1: where they end


@dataclass(frozen=True)
class EvaluationResult:
    """Held-out accuracy of one version, as the engine that served it measured."""

    policy_version: int
    accuracy: float
    prompts: int
    mean_length: float  # tokens
    seconds: float
    server_id: str
    at: float  # unix seconds


class ControlState:
    """Typed access to the control keys of one run."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._announce = Script(client, scripts.ANNOUNCE, [keys.epoch, keys.unapplied, keys.latest, keys.parents])
        self._restore_parents = Script(client, scripts.RESTORE_PARENTS, [keys.epoch, keys.parents])
        self._set_phase = Script(client, scripts.SET_PHASE, [keys.epoch, keys.phase])
        examples = [keys.epoch, keys.examples, keys.examples_bytes]
        self._add_examples = Script(client, scripts.ADD_EXAMPLES, examples)
        self._wishes = Wishes(client, keys)
        self._claim = Script(client, scripts.CLAIM_EVALUATION, [keys.evaluation_jobs])
        self._release = Script(client, scripts.RELEASE_EVALUATION, [keys.evaluation_jobs])

    # -- heartbeats -----------------------------------------------------------------------------
    def beat(self, component: str, status: dict[str, Any], ttl_s: float) -> None:
        """Writes a component's status; it is gone when not renewed within ttl_s. Works at maxmemory."""
        keys = [self._keys.members, self._keys.heartbeat(component)]
        Script(self._client, scripts.HEARTBEAT, keys)(component, json.dumps(status), int(ttl_s * 1000))

    def leave(self, component: str) -> None:
        """Takes a component off the list, in an orderly stop."""
        with translated(), self._client.pipeline(transaction=False) as pipe:
            pipe.delete(self._keys.heartbeat(component)).srem(self._keys.members, component)
            pipe.execute()

    def members(self) -> dict[str, dict[str, Any] | None]:
        """Status of every component that did not leave in order; None where its heartbeat ran out."""
        with translated():
            found = sorted(self._client.smembers(self._keys.members))[: untrusted.MAX_MEMBERS]
            names = [name.decode(errors="replace")[: untrusted.MAX_TEXT] for name in found]
            values = self._client.mget([self._keys.heartbeat(name) for name in names]) if names else []
        return {name: untrusted.heartbeat(value) if value else None for name, value in zip(names, values, strict=True)}

    def status_of(self, component: str) -> dict[str, Any] | None:
        """The living component's status, else None."""
        with translated():
            value = self._client.get(self._keys.heartbeat(component))
        return untrusted.heartbeat(value) if value else None

    def is_member(self, component: str) -> bool:
        """True for a component that has sent a heartbeat and not left, alive or not."""
        with translated():
            return bool(self._client.sismember(self._keys.members, component))

    # -- the learner's word ---------------------------------------------------------------------
    def take_epoch(self) -> int:
        """A new learner epoch; every learner with an older one is fenced from now on."""
        with translated():
            return int(self._client.incr(self._keys.epoch))

    def check_epoch(self, epoch: int) -> None:
        """Look before writing files.

        Raises:
            FencedError: another learner has a higher epoch.
            DataLossError: Redis knows none, or a lower one, so it is not the Redis that gave this one out.

        """
        with translated():
            current = int(self._client.get(self._keys.epoch) or 0)
        if current > epoch:
            raise FencedError("another learner has taken over this run; this one stops without writing")
        if current < epoch:
            raise DataLossError(f"Redis has lost data of this run: its learner epoch was {epoch} and is {current}")

    def announce(
        self, epoch: int, latest: Latest, oldest_kept: int, applied: Sequence[int], copy: bool = False
    ) -> None:
        """Makes a version the latest and, in the same step, frees the credit of the groups it was made of.

        `copy`: it has its parent's weights (a restore), so a lag does not count it.
        Raises FencedError; StreamError where the version is not above the latest.
        """
        numbers = (latest.policy_version, latest.parent, latest.step, oldest_kept)
        said = (latest.depth, latest.credit, int(latest.in_order), latest.oldest)
        self._announce(epoch, *numbers, COPY * copy, *said, *applied)

    def latest(self) -> Latest | None:
        """The newest published version, or None before the first."""
        with translated():
            fields = self._client.hgetall(self._keys.latest)
        if not fields:
            return None
        depth, credit = (int(fields.get(name, 0)) for name in (b"depth", b"credit"))
        version, parent, step = (int(fields[name]) for name in (b"policy_version", b"parent", b"step"))
        in_order, oldest = fields.get(b"in_order") == b"1", int(fields.get(b"oldest", -1))
        return Latest(version, parent, step, depth, credit, in_order, oldest)

    def parents(self) -> dict[int, int]:
        """policy_version -> parent, of every version that is kept."""
        with translated():
            found = self._client.hgetall(self._keys.parents).items()
        return {int(version): int(parent.removesuffix(COPY.encode())) for version, parent in found}

    def descent(self) -> dict[int, int]:
        """policy_version -> the version one publish before it: of a restore's copy, that of what it is a copy of.

        The oldest that lag may lead to has none, -1.
        """
        with translated(), self._client.pipeline(transaction=False) as pipe:  # MULTI is refused at maxmemory
            pipe.hgetall(self._keys.parents).hget(self._keys.latest, "oldest")
            stored, oldest = pipe.execute()
        line: dict[int, int] = {}
        for version, parent in sorted((int(version), parent) for version, parent in stored.items()):
            copied = int(parent.removesuffix(COPY.encode()))
            line[version] = line.get(copied, -1) if parent.endswith(COPY.encode()) else copied
            if version == int(oldest or -1):
                line[version] = -1
        return line

    def restore_parents(self, epoch: int, parents: Mapping[int, int], copies: Collection[int] = ()) -> None:
        """Tells again which versions descend from which, and which are copies of theirs. Raises FencedError."""
        told = ((version, f"{parent}{COPY * (version in copies)}") for version, parent in parents.items())
        self._restore_parents(epoch, *(text for pair in told for text in pair))

    def forget_versions(self, versions: Sequence[int]) -> None:
        """Nobody is to serve these any more: lag ends at the version after the newest of them."""
        if versions:
            with translated():
                self._client.hdel(self._keys.parents, *map(str, versions))

    def set_phase(self, phase: Phase, reason: str = "", epoch: int = 0) -> None:
        """Where the run stands; works at maxmemory. finished and failed end admission.

        Raises:
            FencedError, DataLossError: where a learner's epoch is given, and is not the newest.

        """
        self._set_phase(epoch, phase, reason, time.time())

    def phase(self) -> tuple[Phase, str]:
        """(phase, reason)."""
        with translated():
            phase, reason = self._client.hmget(self._keys.phase, "phase", "reason")
        known: Any = (phase or b"starting").decode()
        return known, (reason or b"").decode()

    def add_history(self, row: dict[str, Any], epoch: int = 0) -> None:
        """Appends one step's record to the history. Raises FencedError, DataLossError as `set_phase` does."""
        History(self._client, self._keys).add(row, epoch)

    def history(self, last: int = 1000) -> list[dict[str, Any]]:
        """The newest `last` step records, oldest first."""
        return History(self._client, self._keys).rows(last)

    def add_examples(self, step: int, rows: Sequence[Mapping[str, Any]], epoch: int, max_bytes: int) -> None:
        """Keeps the groups that a step's ratios hang on, oldest steps going first. Raises as `add_history` does.

        May be repeated: what is there of this step, or of a later one that a restore left, is replaced.
        """
        self._add_examples(epoch, max_bytes, EXAMPLE_ROWS, step, *map(json.dumps, rows))

    def examples(self, step: int | None = None, last: int = 50) -> list[dict[str, Any]]:
        """The newest `last` of them, newest first; of one step all that are kept."""
        with translated():
            entries = self._client.xrevrange(self._keys.examples, count=last if step is None else None)
        return [json.loads(f[b"row"]) for _, f in entries if step is None or int(f[b"step"]) == step]

    def add_event(self, kind: str, text: str, by: str) -> None:
        """Records that something happened."""
        with translated():
            row = {"row": event_row(kind, text, by)}
            self._client.xadd(self._keys.events, row, maxlen=EVENT_ROWS, approximate=True)

    def events(self, last: int = 50) -> list[dict[str, Any]]:
        """The newest events, newest first."""
        with translated():
            entries = self._client.xrevrange(self._keys.events, count=last)
        return [row for _, fields in entries if (row := untrusted.event(fields.get(b"row"))) is not None]

    def events_from(
        self, after: str | None, last: int, kind: str | None = None
    ) -> tuple[list[tuple[str, dict[str, Any]]], str]:
        """The first events after an id, or (None) the newest; oldest first, with their ids, and where to go on."""
        with translated():
            if after is None:
                entries = self._client.xrevrange(self._keys.events, count=last if kind is None else EVENT_ROWS)[::-1]
            else:
                entries = self._client.xrange(self._keys.events, min=f"({after}", count=last if kind is None else None)
        read = [(name.decode(), untrusted.event(fields.get(b"row"))) for name, fields in entries]
        found = [(name, row) for name, row in read if row is not None and kind in (None, row["kind"])]
        found = found[-last:] if after is None else found[:last]
        more = kind is not None and len(found) == last and after is not None
        return found, found[-1][0] if more else read[-1][0] if read else after or "0"

    def newest_event_id(self) -> str:
        """The id of the newest event's entry."""
        with translated():
            found = self._client.xrevrange(self._keys.events, count=1)
        return found[0][0].decode() if found else "0-0"

    @property
    def steering(self) -> Steering:
        """The controller's side of it."""
        return Steering(self._client, self._keys)

    # -- the operator's wish --------------------------------------------------------------------
    def set_paused(self, paused: bool, by: str = "operator") -> bool:
        """Asks everybody to stop admitting and training, or to go on. Returns False where they want that already."""
        kind, told = ("pause", "the run is to stand still") if paused else ("resume", "the run is to go on")
        return self._wishes.make(PAUSED, b"1" if paused else b"", by, told, kind=kind)

    def paused_by(self) -> str:
        """Who wants the run to stand still; '' for nobody."""
        with translated():
            paused, by = self._client.hmget(self._keys.desired, "paused", "paused_by")
        return (by or b"operator").decode(errors="replace")[: untrusted.MAX_TEXT] if paused == b"1" else ""

    def paused(self) -> bool:
        """True while the run is to stand still."""
        return bool(self.paused_by())

    def publish_above(self) -> int:
        """Whoever wants the learner to publish wants a version above this one; -1 for nobody."""
        with translated():
            version = untrusted.number(self._client.hget(self._keys.desired, "publish_above") or b"")
        return -1 if version is None else version

    def set_record_bytes(self, max_bytes: int) -> None:
        """Asks the learner to keep at most this many bytes of recorded steps, from its next batch on; 0: none more."""
        with translated():
            self._client.hset(self._keys.desired, "record_bytes", max_bytes)

    def record_bytes(self) -> int | None:
        """The bound that the operator wants for recorded steps; None: as configured, also where it is no number."""
        with translated():
            value = self._client.hget(self._keys.desired, "record_bytes")
        return int(value) if value is not None and value.isdigit() else None

    def wish_lag(self, text: bytes, by: str, instead_of: bytes | None = None, event: str = "") -> bool:
        """Asks rollout servers for this lag setting (empty: the configuration's), from their next group on.

        Args:
            text: of `shared.config.lag.to_wish`.
            by: who wants it.
            instead_of: the wish that this one was made from; None: whatever there is.
            event: what is recorded where it changes anything; empty: nothing.

        Returns and raises as `Wishes.make`.

        """
        return self._wishes.make(LAG, text, by, event, instead_of)

    def lag_wish(self) -> Wish:
        """What the operator wants; `text` as it is stored, whatever that is."""
        return self._wishes.read(LAG)[0]

    def wish_admission(self, text: bytes, by: str, instead_of: bytes | None = None) -> bool:
        """Asks for other budgets, as `Budgets.wish` writes them; see `Wishes.make`."""
        return self._wishes.make(ADMISSION, text, by, instead_of=instead_of)

    def admission_wish(self) -> Wish:
        """The budgets that somebody wants; `shared.budgets` reads them."""
        return self._wishes.read(ADMISSION)[0]

    # -- evaluation -----------------------------------------------------------------------------
    def request_evaluation(self, policy_version: int) -> None:
        """Asks for a held-out evaluation of this version, or of a later one should it be gone."""
        with translated():
            self._client.hsetnx(self._keys.evaluation_jobs, str(policy_version), "0 ")

    def pending_evaluations(self) -> list[int]:
        """Versions that wait for an evaluation, ascending."""
        with translated():
            wanted = self._client.hkeys(self._keys.evaluation_jobs)
        return sorted(version for key in wanted if (version := untrusted.number(key)) is not None)

    def claim_evaluation(self, policy_version: int, deadline_s: float, component: str) -> bool:
        """Leases one evaluation to a component; False where another one, that lives, holds it. Works at maxmemory."""
        return bool(self._claim(policy_version, int(deadline_s * 1000), component, self._keys.heartbeat("")))

    def release_evaluation(self, policy_version: int) -> None:
        """Gives a claimed evaluation back, so that it can be claimed again at once. Works at maxmemory."""
        self._release(policy_version)

    def finish_evaluation(self, requested: int, result: EvaluationResult) -> None:
        """Stores a result and ends the job that asked for it."""
        with translated(), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._keys.evaluation_results, str(result.policy_version), json.dumps(asdict(result)))
            pipe.hdel(self._keys.evaluation_jobs, str(requested))
            pipe.execute()

    def evaluations(self) -> list[EvaluationResult]:
        """Every result so far, by version."""
        with translated():
            values = self._client.hvals(self._keys.evaluation_results)
        results = (untrusted.record(EvaluationResult, value) for value in values)
        return sorted((result for result in results if result), key=lambda result: result.policy_version)
