"""Who may generate which prompt, and when: leases on prompt indices under two credits.

    lease ---> generate ---> append (the lease becomes an unapplied group) ---> applied, published (credit free)
      |            |
      |            `--> give_back: a failed or stopped server returns the index; it is given out again first
      `--> runs out when the server's heartbeats stop: likewise

Staleness credit counts leases and unapplied groups; byte credit counts the stream's bytes plus a bound for
every lease. Both are looked at in one atomic step, so any number of servers can ask at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared import scripts
from shared.keys import Keys
from shared.redis_client import Client, Script


@dataclass(frozen=True)
class Credit:
    """The run's admission limits."""

    groups: int  # asked for and not yet applied
    max_bytes: int  # in the stream
    group_bytes: int  # the most that one group can take
    lease_s: float
    max_versions_behind: int  # a server farther behind the latest version gets nothing until it has synced


@dataclass(frozen=True)
class Grant:
    """What a server was given: prompt indices, and why not more ('' where it got all that it asked for)."""

    indices: tuple[int, ...]
    reason: str


class Admission:
    """The rollout server's side of admission."""

    def __init__(self, client: Client, keys: Keys, server_id: str, credit: Credit) -> None:
        self._client = client
        self._server_id = server_id
        self._credit = credit
        self._lease_ms = int(credit.lease_s * 1000)
        k = keys
        self._lease = Script(
            client,
            scripts.LEASE,
            [k.cursor, k.leases, k.owners, k.returned, k.unapplied, k.bytes, k.latest, k.clock, k.desired, k.phase],
        )
        self._renew = Script(client, scripts.RENEW, [k.owners, k.leases, k.clock])
        self._give_back = Script(client, scripts.GIVE_BACK, [k.leases, k.owners, k.returned, k.attempts])

    def lease(self, want: int, served_version: int) -> Grant:
        """Asks for up to `want` prompt indices. Raises StreamError, OutOfMemoryError."""
        c = self._credit
        arguments = [want, c.groups, c.max_bytes, c.group_bytes, self._lease_ms, served_version, c.max_versions_behind]
        reason, *indices = self._lease(self._server_id, *arguments)
        return Grant(tuple(int(index) for index in indices), reason.decode())

    def renew(self) -> int:
        """Extends every lease of this server; works at maxmemory too. Returns how many it holds."""
        return int(self._renew(self._server_id, self._lease_ms))

    def give_back(self, indices: Sequence[int], failed: bool = False) -> list[int]:
        """Returns leases so that they are given out again.

        Returns:
            With `failed`, how often each index has failed so far (0 where the lease was no longer ours).

        """
        if not indices:
            return []
        return [int(n) for n in self._give_back(self._server_id, int(failed), *indices)]
