"""The controller's side of the control state: its lease, its memory, and acts that are one step or none.

Several control planes may run; the one that holds the lease acts. Everything that an act changes (wishes, memory,
event) is written by one script, which looks first whether the lease still holds and whether the wishes are those that
the act was made from: an operator who is a moment earlier wins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared import scripts, untrusted
from shared.keys import Keys
from shared.redis_client import Client, Script, translated
from shared.wishes import EVENT_ROWS, event_row

CONTROLLER = "controller"  # who a wish is by
OF_PROCESS = "#"  # in the lease, between a control plane's name and what tells its process from another of that name
_FIELDS = ("lag", "lag_by", "lag_at", "admission", "admission_by", "admission_at", "paused", "paused_by")


@dataclass(frozen=True)
class Wanted:
    """Everything that is wanted of the run now, as stored; '' is the configuration's."""

    lag: str = ""
    lag_by: str = ""
    lag_at: str = ""
    admission: str = ""
    admission_by: str = ""
    admission_at: str = ""
    paused: str = ""
    paused_by: str = ""


class Steering:
    """What a controller needs of one run."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._claim = Script(client, scripts.CLAIM_CONTROLLER, [keys.controller_lease])
        self._act = Script(client, scripts.ACT, [keys.controller_lease, keys.controller, keys.desired, keys.events])

    def claim(self, who: str, lease_s: float) -> bool:
        """Takes or renews the lease; False where another one holds it."""
        return bool(self._claim(who, int(lease_s * 1000)))

    def holder(self) -> str:
        """The control plane that may act now; '' for none."""
        with translated():
            found = self._client.get(self._keys.controller_lease) or b""
        return found.decode(errors="replace").partition(OF_PROCESS)[0]

    def wishes(self) -> Wanted:
        """What is wanted now."""
        with translated():
            found = self._client.hmget(self._keys.desired, *_FIELDS)
        return Wanted(*((value or b"").decode(errors="replace") for value in found))

    def state(self) -> dict[str, Any]:
        """What the controller remembers; empty where it has not begun."""
        with translated():
            return untrusted.json_object(self._client.get(self._keys.controller))

    def act(
        self,
        who: str,
        state: Mapping[str, Any],
        expected: Mapping[str, str] | None = None,
        wanted: Mapping[str, str] | None = None,
        event: tuple[str, str] | None = None,
    ) -> bool:
        """Writes all of it, or nothing.

        Args:
            who: holds the lease.
            state: what the controller remembers from now on.
            expected: fields of `Wanted` that must still be so.
            wanted: fields that are to be so.
            event: kind and text.

        Returns:
            False, with nothing written, where the lease is lost or somebody has wished for something else.

        Raises:
            StreamError: Redis does not answer, or is full.

        """
        before, after = (_flat(fields or {}) for fields in (expected, wanted))
        said = [event_row(*event, CONTROLLER) if event else "", EVENT_ROWS]
        return int(self._act(who, json.dumps(state), *said, *before, *after)) == 1


def _flat(fields: Mapping[str, str]) -> list[str | int]:
    return [len(fields), *(part for pair in fields.items() for part in pair)]
