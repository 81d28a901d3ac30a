"""The dead letters: entries of the stream that could not be trained on, and what may be done about them.

    stream ----> dead letter (one atomic move, `scripts.DEAD_LETTER`) ----> requeued into the stream
                      `--> dropped, oldest first, once all of them take more than admission.dead_letter_bytes

The totals by reason count for ever, also what was dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from shared import scripts
from shared.keys import Keys
from shared.redis_client import Client, Script, translated

REQUEUED = "requeued"  # what `requeue` says where it has worked
NOT_THERE = "there is no such dead letter"
LETTER_BYTES = 512  # that one takes beside its payload, so that many small ones are bounded too
_PAGE = 16


@dataclass(frozen=True)
class Letter:
    """What is known of an entry that was moved to the dead letters."""

    group_id: str
    prompt_index: int  # -1 where it is none of this run
    reason: str  # a short word, as in the metric
    error: str  # what exactly is wrong
    server: str  # that appended it; '' where that cannot be read
    at: float  # unix seconds


@dataclass(frozen=True)
class DeadLetter(Letter):
    """One that is kept."""

    id: str
    entry_id: str  # of the stream entry that it was
    size: int  # bytes of the payload, kept or not
    payload: bytes  # empty where it alone was larger than all dead letters may be


@dataclass(frozen=True)
class ReasonTotals:
    """All dead letters of one reason since the run began."""

    count: int = 0
    bytes: int = 0
    dropped: int = 0  # of them, removed to make room
    dropped_bytes: int = 0
    requeued: int = 0


def letters(client: Client, keys: Keys, after: str | None = None) -> Iterator[DeadLetter]:
    """Every dead letter that is kept, or those after an id, oldest first, a few at a time. Raises StreamError."""
    start = f"({after}" if after else "-"
    while True:
        with translated():
            page = client.xrange(keys.dead_letters, min=start, count=_PAGE)
        if not page:
            return
        for entry_id, fields in page:
            yield _letter(entry_id, fields)
        start = "(" + page[-1][0].decode()


def letter(client: Client, keys: Keys, letter_id: str) -> DeadLetter | None:
    """One dead letter by its id, if it is kept. Raises StreamError (also for what is no id)."""
    with translated():
        found = client.xrange(keys.dead_letters, min=letter_id, max=letter_id, count=1)
    return _letter(*found[0]) if found else None


def totals(client: Client, keys: Keys) -> dict[str, ReasonTotals]:
    """What was ever moved to the dead letters, by reason."""
    with translated():
        raw = client.hgetall(keys.dead_letter_totals)
    found: dict[str, dict[str, int]] = {}
    for field, value in raw.items():
        name, _, reason = field.decode(errors="replace").partition(":")
        if reason:
            found.setdefault(reason, {})[name] = int(value)
    return {reason: ReasonTotals(**found[reason]) for reason in sorted(found)}


def requeue(client: Client, keys: Keys, letter_id: str) -> str:
    """Puts a dead letter's payload back into the stream, in one step. Returns what became of it.

    It is trained on where the learner's rules now allow it; it is refused where its prompt has ended in another way, is
    waiting in the stream or is being drawn again, and where it is of another run.
    """
    script = Script(
        client,
        scripts.REQUEUE,
        [
            keys.dead_letters,
            keys.dead_letter_totals,
            keys.buried,
            keys.groups,
            keys.unapplied,
            keys.bytes,
            keys.owners,
            keys.returned,
        ],
    )
    return str(script(letter_id, keys.run_id).decode())


def _letter(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    payload = fields.get(b"payload", b"")
    index = text(b"prompt_index")
    return DeadLetter(
        group_id=text(b"group_id"),
        prompt_index=int(index) if index.isdigit() and len(index) < 20 else -1,
        reason=text(b"reason"),
        error=text(b"error"),
        server=text(b"server"),
        at=float(fields.get(b"at", 0)),
        id=entry_id.decode(),
        entry_id=text(b"entry_id"),
        size=int(fields.get(b"size", len(payload))),
        payload=payload,
    )
