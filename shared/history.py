"""One row a step: written by the learner, fenced by its epoch, and rolled up in the same moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgpack

from shared import scripts
from shared.keys import Keys
from shared.redis_client import Client, Script, translated
from shared.series import KEPT, SHARES, flatten, merged

ROWS = 5_000  # whole rows at most; the run folder has them all
DEFAULT_BYTES = 64 * 2**20
_PAGE = 256

Row = dict[str, Any]


class History:
    """The history of one run."""

    def __init__(self, client: Client, keys: Keys, max_bytes: int = DEFAULT_BYTES) -> None:
        self._client = client
        self._keys = keys
        self._bounds = [int(max_bytes * SHARES[tier]) for tier in ("steps", "minutes", "hours")]
        self._row_bytes = int(max_bytes * SHARES["rows"])
        written = [keys.epoch, keys.history, keys.series]
        self._add = Script(client, scripts.ADD_HISTORY, written)
        self._rewind = Script(client, scripts.REWIND, written)

    def add(self, row: Row, epoch: int = 0) -> None:
        """Appends one step's record; the newest one again changes nothing.

        Raises:
            FencedError, DataLossError: where a learner's epoch is given, and is not the newest.

        """
        values = flatten(row)
        bounds = (*self._bounds, KEPT["minutes"], KEPT["hours"])
        self._add(epoch, json.dumps(row), ROWS, self._row_bytes, values.get("at", 0.0), msgpack.packb(values), *bounds)

    def rows(self, last: int) -> list[Row]:
        """The newest `last` rows, oldest first."""
        with translated():
            entries = self._client.xrevrange(self._keys.history, count=last)
        return [json.loads(fields[b"row"]) for _, fields in reversed(entries)]

    def newest_id(self) -> str:
        """The id of the newest row's entry."""
        with translated():
            found = self._client.xrevrange(self._keys.history, count=1)
        return found[0][0].decode() if found else "0-0"

    def after(self, entry_id: str, count: int) -> list[tuple[str, Row]]:
        """The oldest rows after an entry, with the ids of theirs; empty where one cannot be read."""
        with translated():
            entries = self._client.xrange(self._keys.history, min=f"({entry_id}", count=count)
        return [(name.decode(), _readable(fields.get(b"row", b""))) for name, fields in entries]

    def rewind(self, step: int, epoch: int) -> int:
        """Takes back all beyond a step, in a restore: what is done again is not counted twice. Returns how many rows.

        Raises:
            FencedError, DataLossError: as `add`.

        """
        abandoned, kept, at = False, list[dict[str, float]](), 0.0
        for row in self._newest_first():
            if row.get("step", 0) > step:
                abandoned, at = True, row.get("at", 0.0) if step else 0.0
            elif not abandoned:
                return 0
            elif not kept or row.get("at", 0.0) // 60 == at // 60:
                at = at if kept else row.get("at", 0.0)
                kept.append(flatten(row))
            else:
                break
        return int(self._rewind(epoch, step, at, merged(reversed(kept)))) if abandoned else 0

    def _newest_first(self) -> Iterator[Row]:
        end = "+"
        while True:
            with translated():
                page = self._client.xrevrange(self._keys.history, max=end, count=_PAGE)
            if not page:
                return
            yield from (json.loads(fields[b"row"]) for _, fields in page)
            end = f"({page[-1][0].decode()}"


def _readable(raw: bytes) -> Row:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
