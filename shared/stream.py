"""The stream of groups: appended by rollout servers, read, acknowledged and deleted by one learner.

    append ----> [stream] ----> read ----> apply (optimizer step) ----> checkpoint n, checkpoint n + 1 ----> delete

A crash at any arrow before `delete` leaves the entry in the stream; the learner's ledger of finished prompt
indices, stored in the checkpoint, tells which of the entries it finds were applied already. Nothing is ever
trimmed by length. deploy/docs/delivery.md goes through the arrows one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from shared import scripts
from shared.acknowledged import Acknowledged
from shared.errors import OutOfMemoryError, StreamError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.letters import LETTER_BYTES, Letter
from shared.redis_client import BLOCK_S, Client, Script, translated

CONSUMER_GROUP = "learner"
CONSUMER = "rank0"

PAYLOAD = "payload"
FAILURE = "failure"
FORGOTTEN = "forgotten"  # a server knows that it was acknowledged; Redis does not
TAKEN_OUT = "taken_out"  # appended, and its entry is not in the stream
_TOLD_AT_ONCE = 1000  # claims in one command


class Appended(Enum):
    """What became of an append."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # the group of this index is in the stream already
    LEASE_LOST = "lease lost"  # somebody else was given this index; the group is discarded


@dataclass(frozen=True)
class Entry:
    """One stream entry: either a group's payload, or the reason why there will never be one."""

    entry_id: str
    group_id: str
    prompt_index: int  # -1 where the entry has none
    payload: bytes  # encoded group; empty for a failure
    failure: str  # '' for a group
    latest: int = -1  # the latest version when it was appended; -1 where nobody knows

    @property
    def size(self) -> int:
        """Bytes that the entry's body takes."""
        return len(self.payload) or len(self.failure)


@dataclass(frozen=True)
class Claim:
    """An acknowledged group that somebody misses."""

    prompt_index: int
    cause: str  # FORGOTTEN or TAKEN_OUT
    id: str  # of this claim, unique


@dataclass(frozen=True)
class Deleted:
    """What a deletion did."""

    bytes: int  # freed
    missing: int  # entries that were gone already


@dataclass(frozen=True)
class Backlog:
    """What the stream holds."""

    groups: int  # in Redis, acknowledged or not
    unapplied: int  # of these, not applied yet
    leased: int  # asked for, not yet appended
    bytes: int
    appended: int  # acknowledged since the run began
    dead_letters: int


class GroupWriter:
    """The rollout server's side of the stream."""

    def __init__(self, client: Client, keys: Keys, server_id: str) -> None:
        k = keys
        self._client = client
        self._keys = keys
        self._server_id = server_id
        self._acknowledged = Acknowledged()
        counted = [k.groups, k.leases, k.owners, k.unapplied, k.bytes, k.appended, k.attempts, k.acknowledged]
        self._append = Script(client, scripts.APPEND, [*counted, k.latest, k.drawing])
        lost = [k.claims, k.unapplied, k.owners, k.leases, k.returned, k.drawing]
        self._claim = Script(client, scripts.CLAIM_LOST, lost)

    def append(self, prompt_index: int, group_id: str, payload: bytes) -> Appended:
        """Appends one group; safe to repeat after an error. Raises StreamError, OutOfMemoryError."""
        return self._store(prompt_index, group_id, PAYLOAD, payload)

    def append_failure(self, prompt_index: int, group_id: str, reason: str) -> Appended:
        """Ends a prompt for which there will be no group, so that its credit returns and it is counted."""
        return self._store(prompt_index, group_id, FAILURE, reason.encode())

    def confirm(self) -> int:
        """Looks whether Redis still knows of all that it has acknowledged, and says what it does not.

        Returns:
            How many acknowledged groups are gone. Raises StreamError.

        """
        known, times_lost = self._acknowledged.now()
        count = self.counted()
        return self._claim_lost(count, times_lost) if count < known else 0

    def counted(self) -> int:
        """How many appends of this server Redis remembers, those of its former lives included."""
        with translated():
            return int(self._client.hget(self._keys.acknowledged, self._server_id) or 0)

    def _store(self, prompt_index: int, group_id: str, field: str, body: bytes) -> Appended:
        while True:
            known, times_lost = self._acknowledged.now()
            what, count = self._append(self._server_id, prompt_index, group_id, field, body, known)
            if what != b"data lost":
                break
            self._claim_lost(int(count), times_lost)
        appended = Appended(what.decode())
        if appended is not Appended.LEASE_LOST:  # a duplicate is acknowledged too: its first answer was lost
            self._remember(prompt_index, int(count), times_lost)
        return appended

    def _remember(self, prompt_index: int, count: int, times_lost: int) -> None:
        if not self._acknowledged.add(prompt_index, count, times_lost):
            self._claim(self._server_id, prompt_index)

    def _claim_lost(self, count: int, times_lost: int) -> int:
        missed = self._acknowledged.forgotten(count, times_lost)
        return sum(
            int(self._claim(self._server_id, *missed[i : i + _TOLD_AT_ONCE]))
            for i in range(0, len(missed), _TOLD_AT_ONCE)
        )


class GroupReader:
    """The learner's side of the stream; `epoch` fences a learner that was thought dead."""

    def __init__(self, client: Client, keys: Keys, epoch: int) -> None:
        self._client = client
        self._keys = keys
        self._epoch = epoch
        k = keys
        self._delete = Script(client, scripts.DELETE, [k.epoch, k.groups, k.bytes])
        self._release = Script(client, scripts.RELEASE, [k.epoch, k.unapplied])
        self._settle = Script(client, scripts.SETTLE_CLAIMS, [k.epoch, k.claims, k.returned])
        self._bury = Script(
            client,
            scripts.DEAD_LETTER,
            [k.epoch, k.groups, k.bytes, k.dead_letters, k.dead_letter_totals, k.buried, k.unapplied],
        )
        self._restore = Script(
            client,
            scripts.RESTORE,
            [k.epoch, k.groups, k.cursor, k.returned, k.unapplied, k.bytes, k.owners, k.appended, k.claims],
        )
        self._oldest = Script(client, scripts.OLDEST, [k.groups])
        self._reread_from: str | None = "0"  # own pending entries come first, then new ones

    def open(self, finished: Intervals, in_hand: Collection[int] = (), named: int = 0) -> bool:
        """Creates the consumer group if need be and rebuilds the credits from ledger, stream and leases.

        Args:
            finished: prompt indices that hold no credit any more.
            in_hand: prompt indices of groups that the learner holds, or has applied and not announced.
            named: groups that were acknowledged and lost, and are known to be.

        Returns:
            True where Redis did not know this learner any more: it was emptied, or went back to an earlier state.

        Raises:
            FencedError: another learner has a higher epoch.
            StreamError: Redis cannot be reached.

        """
        bounds = [bound for pair in finished.pairs() for bound in pair]
        epoch = int(self._restore(self._epoch, named, len(in_hand), *in_hand, *bounds))
        try:
            with translated():
                self._client.xgroup_create(self._keys.groups, CONSUMER_GROUP, id="0", mkstream=True)
        except OutOfMemoryError:
            pass  # refused even where the group exists; if it does not, `read` says so
        except StreamError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._reread_from = "0"
        return epoch < self._epoch

    def read(self, count: int, wait: bool = True) -> list[Entry]:
        """Up to `count` entries; waits up to a second for new ones. Pending ones of an earlier life come first.

        Args:
            count: the most entries.
            wait: False takes what is there.

        Raises:
            StreamError: Redis cannot be reached, or the consumer group is gone (`open` again).

        """
        while self._reread_from is not None:
            answer = self._ask(self._reread_from, count, None)
            self._reread_from = answer[-1][0].decode() if answer else None
            gone = [entry_id.decode() for entry_id, fields in answer if not fields]
            if gone:  # pending, but taken out of the stream by somebody else
                self.delete(gone)
            if len(gone) < len(answer):
                return self._entries(answer)
        return self._entries(self._ask(">", count, int(BLOCK_S * 1000) if wait else None))

    def _ask(self, after: str, count: int, block_ms: int | None) -> list[tuple[bytes, dict[bytes, bytes]]]:
        with translated():
            answer = self._client.xreadgroup(
                CONSUMER_GROUP, CONSUMER, {self._keys.groups: after}, count=count, block=block_ms
            )
        return [item for _, items in answer or () for item in items]

    def _entries(self, answer: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Entry]:
        if not answer:
            return []
        with translated():
            cursor = int(self._client.get(self._keys.cursor) or 0)
        return [_entry(entry_id, fields, cursor) for entry_id, fields in answer if fields]

    def release(self, indices: Sequence[int]) -> None:
        """Frees the staleness credit of groups that ended without an optimizer step."""
        if indices:
            self._release(self._epoch, *indices)

    def delete(self, entry_ids: Sequence[str]) -> Deleted:
        """Acknowledges and deletes; works at maxmemory. Raises FencedError."""
        answers = [
            self._delete(self._epoch, CONSUMER_GROUP, *entry_ids[i : i + 256]) for i in range(0, len(entry_ids), 256)
        ]
        return Deleted(sum(int(freed) for freed, _ in answers), sum(int(missing) for _, missing in answers))

    def dead_letter(self, entry: Entry, letter: Letter, max_bytes: int) -> None:
        """Moves an entry that cannot be trained on to the dead letters; works at maxmemory, may be repeated.

        Args:
            entry: as it was read.
            letter: what is known of it.
            max_bytes: all that the dead letters may hold; the oldest go first.

        """
        told = [letter.group_id, letter.prompt_index, letter.reason, letter.error, letter.server, letter.at]
        self._bury(self._epoch, CONSUMER_GROUP, max_bytes, LETTER_BYTES, entry.entry_id, *told, entry.payload)

    def oldest_s(self) -> float | None:
        """Seconds since the oldest group that was never read was appended, by Redis's clock; None: there is none."""
        milliseconds = int(self._oldest(CONSUMER_GROUP))
        return milliseconds / 1000 if milliseconds >= 0 else None

    def buried(self) -> dict[int, str]:
        """The reason of every prompt that ended as a dead letter which is still kept."""
        with translated():
            ends = self._client.hgetall(self._keys.buried)
        return {int(index): end.decode().partition(" ")[2] for index, end in ends.items()}

    def claims(self) -> list[Claim]:
        """Acknowledged groups that are missed, by `open` or by a server; oldest first, until they are settled."""
        with translated():
            told = [claim.decode().split() for claim in self._client.lrange(self._keys.claims, 0, -1)]
        return [Claim(int(index), cause, claim_id) for index, cause, claim_id in told]

    def settle(self, how_many: int, present: Sequence[int]) -> None:
        """The oldest claims were dealt with; of these, `present` are groups that are here after all."""
        self._settle(self._epoch, how_many, *present)


def backlog(client: Client, keys: Keys) -> Backlog:
    """What the stream holds now."""
    with translated(), client.pipeline(transaction=False) as pipe:
        pipe.xlen(keys.groups).scard(keys.unapplied).zcard(keys.leases).get(keys.bytes).get(keys.appended)
        pipe.xlen(keys.dead_letters)
        groups, unapplied, leased, size, appended, dead = pipe.execute()
    return Backlog(groups, unapplied, leased, int(size or 0), int(appended or 0), dead)


def _entry(entry_id: bytes, fields: dict[bytes, bytes], cursor: int) -> Entry:
    """An entry; an index that was never given out is none."""
    index = _natural(fields.get(b"prompt_index", b""))
    return Entry(
        entry_id=entry_id.decode(),
        group_id=fields.get(b"group_id", b"").decode(errors="replace"),
        prompt_index=index if index < cursor else -1,
        payload=fields.get(PAYLOAD.encode(), b""),
        failure=fields.get(FAILURE.encode(), b"").decode(errors="replace"),
        latest=_natural(fields.get(b"latest", b"")),
    )


def _natural(raw: bytes) -> int:
    return int(raw) if raw.isdigit() and len(raw) < 19 else -1
