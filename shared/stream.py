"""The stream of groups: appended by rollout servers, read, acknowledged and deleted by one learner.

    append ----> [stream] ----> read ----> apply (optimizer step) ----> checkpoint n, checkpoint n + 1 ----> delete

A crash at any arrow before `delete` leaves the entry in the stream; the learner's ledger of finished prompt
indices, stored in the checkpoint, tells which of the entries it finds were applied already. Nothing is ever
trimmed by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from shared import scripts
from shared.errors import OutOfMemoryError, StreamError
from shared.intervals import Intervals
from shared.keys import Keys
from shared.redis_client import BLOCK_S, Client, Script, translated

CONSUMER_GROUP = "learner"
CONSUMER = "rank0"

PAYLOAD = "payload"
FAILURE = "failure"


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

    @property
    def size(self) -> int:
        """Bytes that the entry's body takes."""
        return len(self.payload) or len(self.failure)


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
        self._server_id = server_id
        self._append = Script(
            client,
            scripts.APPEND,
            [keys.groups, keys.leases, keys.owners, keys.unapplied, keys.bytes, keys.appended, keys.attempts],
        )

    def append(self, prompt_index: int, group_id: str, payload: bytes) -> Appended:
        """Appends one group; safe to repeat after an error. Raises StreamError, OutOfMemoryError."""
        return self._store(prompt_index, group_id, PAYLOAD, payload)

    def append_failure(self, prompt_index: int, group_id: str, reason: str) -> Appended:
        """Ends a prompt for which there will be no group, so that its credit returns and it is counted."""
        return self._store(prompt_index, group_id, FAILURE, reason.encode())

    def _store(self, prompt_index: int, group_id: str, field: str, body: bytes) -> Appended:
        answer = self._append(self._server_id, prompt_index, group_id, field, body).decode()
        return Appended(answer) if answer in ("duplicate", "lease lost") else Appended.STORED


class GroupReader:
    """The learner's side of the stream; `epoch` fences a learner that was thought dead."""

    def __init__(self, client: Client, keys: Keys, epoch: int) -> None:
        self._client = client
        self._keys = keys
        self._epoch = epoch
        self._delete = Script(client, scripts.DELETE, [keys.epoch, keys.groups, keys.bytes])
        self._release = Script(client, scripts.RELEASE, [keys.epoch, keys.unapplied])
        self._restore = Script(
            client,
            scripts.RESTORE,
            [keys.epoch, keys.groups, keys.cursor, keys.returned, keys.unapplied, keys.bytes, keys.owners],
        )
        self._reread_from: str | None = "0"  # own pending entries come first, then new ones

    def open(self, finished: Intervals) -> None:
        """Creates the consumer group if need be and rebuilds the credits from ledger, stream and leases."""
        try:
            with translated():
                self._client.xgroup_create(self._keys.groups, CONSUMER_GROUP, id="0", mkstream=True)
        except OutOfMemoryError:
            pass  # refused even where the group exists; if it does not, `read` says so
        except StreamError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._restore(self._epoch, *(bound for pair in finished.pairs() for bound in pair))
        self._reread_from = "0"

    def read(self, count: int) -> list[Entry]:
        """Up to `count` entries; waits up to a second for new ones. Pending ones of an earlier life come first.

        Raises:
            StreamError: Redis cannot be reached, or the consumer group is gone (`open` again).

        """
        pending = self._reread_from is not None
        with translated():
            answer = self._client.xreadgroup(
                CONSUMER_GROUP,
                CONSUMER,
                {self._keys.groups: self._reread_from or ">"},
                count=count,
                block=None if pending else int(BLOCK_S * 1000),
            )
            cursor = int(self._client.get(self._keys.cursor) or 0) if answer else 0
        found = [(entry_id, fields) for _, items in answer or () for entry_id, fields in items if fields]
        entries = [_entry(entry_id, fields, cursor) for entry_id, fields in found]
        if pending:
            last = [entry_id for _, items in answer or () for entry_id, _ in items]
            self._reread_from = last[-1].decode() if last else None
            return entries if last else self.read(count)
        return entries

    def release(self, indices: Sequence[int]) -> None:
        """Frees the staleness credit of groups that ended without an optimizer step."""
        if indices:
            self._release(self._epoch, *indices)

    def delete(self, entry_ids: Sequence[str]) -> int:
        """Acknowledges and deletes; works at maxmemory. Returns the payload bytes freed. Raises FencedError."""
        return sum(
            int(self._delete(self._epoch, CONSUMER_GROUP, *entry_ids[i : i + 256]))
            for i in range(0, len(entry_ids), 256)
        )

    def dead_letter(self, entry: Entry, reason: str, error: str) -> None:
        """Keeps a copy of an entry that cannot be trained on; the entry itself is deleted by `delete`."""
        with translated():
            self._client.xadd(
                self._keys.dead_letters,
                {
                    "group_id": entry.group_id,
                    "prompt_index": entry.prompt_index,
                    "reason": reason,
                    "error": error,
                    "entry_id": entry.entry_id,
                    "payload": entry.payload,
                },
            )


def backlog(client: Client, keys: Keys) -> Backlog:
    """What the stream holds now."""
    with translated(), client.pipeline(transaction=False) as pipe:
        pipe.xlen(keys.groups).scard(keys.unapplied).zcard(keys.leases).get(keys.bytes).get(keys.appended)
        pipe.xlen(keys.dead_letters)
        groups, unapplied, leased, size, appended, dead = pipe.execute()
    return Backlog(groups, unapplied, leased, int(size or 0), int(appended or 0), dead)


def _entry(entry_id: bytes, fields: dict[bytes, bytes], cursor: int) -> Entry:
    """An entry; an index that was never given out is none."""
    raw = fields.get(b"prompt_index", b"")
    index = int(raw) if raw.isdigit() and len(raw) < 20 else -1
    return Entry(
        entry_id=entry_id.decode(),
        group_id=fields.get(b"group_id", b"").decode(errors="replace"),
        prompt_index=index if index < cursor else -1,
        payload=fields.get(PAYLOAD.encode(), b""),
        failure=fields.get(FAILURE.encode(), b"").decode(errors="replace"),
    )
