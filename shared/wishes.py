"""What operators want of a run while it goes on: kept in Redis, each with who and when, and with its event.

    budgets, learner's settings    fields of `desired`, read with the next lease and before the next batch
    servers to drain               `draining`, looked at with every lease
    dead letters to requeue        `requeues`, taken by the learner; `trustbatch dead-letters requeue` does it itself

Wishes outlive restarts, and whoever follows them bounds them by its own configuration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared import scripts, untrusted
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import Client, Script, translated

EVENT_ROWS = 5_000
MOST_MARKED = 1_000  # servers that drain, letters that wait
ADMISSION = "admission"
OBJECTIVE = "objective"
LAG = "lag"
PAUSED = "paused"


@dataclass(frozen=True)
class Wish:
    """What somebody wants; none: the configuration's."""

    text: bytes = b""  # canonical JSON; empty: none
    by: str = ""
    at: float | None = None  # unix seconds


@dataclass(frozen=True)
class Mark:
    """Who wants something of one server or letter."""

    by: str = ""
    at: float | None = None  # unix seconds
    leave: str = ""  # host and process that is to end, once it has nothing left


class Wishes:
    """The wishes of one run."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._wish = Script(client, scripts.WISH, [keys.desired, keys.events])

    def make(
        self, name: str, text: bytes, by: str, event: str = "", instead_of: bytes | None = None, kind: str = ""
    ) -> bool:
        """Wants something; empty: the configuration's. Works at maxmemory.

        Args:
            name: ADMISSION, OBJECTIVE, LAG or PAUSED.
            text: canonical JSON, so that equal wishes have equal texts.
            by: who wants it.
            event: what is recorded where it changes anything; empty: nothing.
            instead_of: the wish that this one was made from; None: whatever there is.
            kind: of the event; empty: the name.

        Returns:
            False where the same one wanted it already.

        Raises:
            StreamError: Redis does not answer, or another wish came in between.

        """
        told = event_row(kind or name, event, by) if event else ""
        expected = [instead_of] if instead_of is not None else []
        found = int(self._wish(name, text, by, time.time(), told, EVENT_ROWS, *expected))
        if found < 0:
            raise StreamError(f"somebody else has just changed the {name}; look at it, and try again")
        return bool(found)

    def read(self, *names: str) -> list[Wish]:
        """What is wanted now of each of these; texts as they are stored, whatever that is."""
        fields = [field for name in names for field in (name, f"{name}_by", f"{name}_at")]
        with translated():
            found = self._client.hmget(self._keys.desired, fields)
        return [_wish(*found[i : i + 3]) for i in range(0, len(found), 3)]

    def drain(self, server_id: str, by: str, wanted: bool) -> bool:
        """Asks a rollout server to take no new groups, or to go on. Returns False where that is so already."""
        text = f"{server_id} is to {'finish what it has and take nothing new' if wanted else 'take groups again'}"
        event = event_row("drain" if wanted else "undrain", text, by)
        return self._mark(self._keys.draining, server_id, by if wanted else "", event)

    def dismiss(self, server_id: str, incarnation: str, by: str) -> bool:
        """Asks a drained server to end; another process of that name is not meant."""
        event = event_row("remove", f"{server_id} is to leave", by)
        if self.draining().get(server_id, Mark()).leave == incarnation:
            return False
        return self._mark(self._keys.draining, server_id, by, event, leave=incarnation)

    def dismissed(self, server_id: str) -> None:
        """The server has heard it, and asks for no prompt any more."""
        self._mark(self._keys.draining, server_id, "", "")

    def removed(self, server_id: str, by: str) -> None:
        """Takes a dead server off the list, and what was wanted of it; one that is not dead puts itself back on it."""
        script = Script(self._client, scripts.REMOVE, [self._keys.members, self._keys.draining, self._keys.events])
        event = event_row("remove", f"{server_id}, which was dead, is off the list", by)
        script(f"rollout:{server_id}", server_id, event, EVENT_ROWS)

    def draining(self) -> dict[str, Mark]:
        """Server id -> who wants it to take no new groups, and since when."""
        return self._marks(self._keys.draining)

    def requeue(self, letter_id: str, by: str) -> bool:
        """Asks the learner to put a dead letter back into the stream. Returns False where that is asked already."""
        event = event_row("requeue", f"dead letter {letter_id} is to go back into the stream", by)
        return self._mark(self._keys.requeues, letter_id, by, event)

    def requeues(self) -> dict[str, Mark]:
        """Dead letter id -> who wants it back in the stream, and since when."""
        return self._marks(self._keys.requeues)

    def requeued(self, letter_id: str, outcome: str, by: str) -> None:
        """The learner has done, or refused, what was asked."""
        event = event_row("requeue", f"dead letter {letter_id}: {outcome}", by)
        self._mark(self._keys.requeues, letter_id, "", event)

    def _mark(self, key: str, field: str, by: str, event: str, leave: str = "") -> bool:
        script = Script(self._client, scripts.MARK, [key, self._keys.events])
        value = json.dumps({"by": by, "at": time.time(), "leave": leave}) if by else ""
        found = int(script(field, value, event, EVENT_ROWS, MOST_MARKED, int(bool(leave))))
        if found < 0:
            raise StreamError(f"{MOST_MARKED:,} such wishes wait already; ask again when some are done")
        return bool(found)

    def _marks(self, key: str) -> dict[str, Mark]:
        with translated():
            found = self._client.hgetall(key)
        return {name.decode(errors="replace"): _mark(value) for name, value in found.items()}


def event_row(kind: str, text: str, by: str) -> str:
    """An event as it is stored."""
    return json.dumps({"kind": kind, "text": text, "by": by, "at": time.time()})


def canonical(values: Mapping[str, Any]) -> bytes:
    """The text of a wish; empty where nothing is wanted."""
    wanted = {name: value for name, value in values.items() if value not in (None, {})}
    return json.dumps(wanted, sort_keys=True).encode() if wanted else b""


def _wish(text: bytes | None, by: bytes | None, at: bytes | None) -> Wish:
    if not text:
        return Wish()
    return Wish(text, (by or b"").decode(errors="replace")[: untrusted.MAX_TEXT], untrusted.seconds(at))


def _mark(raw: bytes) -> Mark:
    found = untrusted.json_object(raw)
    at = found.get("at")
    by, leave = (str(found.get(name, ""))[: untrusted.MAX_TEXT] for name in ("by", "leave"))
    return Mark(by, float(at) if isinstance(at, int | float) else None, leave)


def incarnation(values: Mapping[str, Any]) -> str:
    """Which process a heartbeat is of."""
    return f"{values.get('host')} {values.get('pid')}"
