"""Who may generate which prompt, and when: leases on prompt indices under two credits.

    lease ---> generate ---> append (the lease becomes an unapplied group) ---> applied, published (credit free)
      |            |
      |            `--> give_back: a failed or stopped server returns the index; it is given out again first
      `--> runs out when the server's heartbeats stop: likewise

Staleness credit counts leases and unapplied groups, and what a server is behind the version that it is to serve, or the
longest lease is behind the latest; a server that is ahead gets nothing. Byte credit counts the stream's bytes plus a
bound for every lease. Both are looked at in one atomic step, so any number of servers can ask at once. The learner can
lower the staleness credit, and count the longest lease or not, with every version that it announces (`admission.admit`,
shared/policies.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared import scripts, untrusted
from shared.keys import Keys
from shared.lag import Asked
from shared.redis_client import Client, Script, translated

LATEST = Asked()  # lag 0, whatever the operator wants


@dataclass(frozen=True)
class Credit:
    """The run's admission limits."""

    versions: int  # max_staleness + 1: a group asked for now is applied before so many more are published
    groups_per_version: int  # applied between two published versions
    max_bytes: int  # in the stream
    group_bytes: int  # the most that one group can take
    lease_s: float
    least_bytes: int = 0  # a wish for fewer bytes counts as one for these


@dataclass(frozen=True)
class Grant:
    """What a server was given: prompt indices, and why not more ('' where it got all that it asked for)."""

    indices: tuple[int, ...]
    reason: str


class Admission:
    """The rollout server's side of admission."""

    def __init__(self, client: Client, keys: Keys, server_id: str, credit: Credit) -> None:
        self._client = client
        self._keys = keys
        self._server_id = server_id
        self._credit = credit
        self._lease_ms = int(credit.lease_s * 1000)
        k = keys
        counted = [k.cursor, k.leases, k.owners, k.returned, k.unapplied, k.bytes]
        self._lease = Script(
            client, scripts.LEASE, [*counted, k.latest, k.clock, k.desired, k.phase, k.parents, k.drawing, k.draining]
        )
        self._renew = Script(client, scripts.RENEW, [k.owners, k.leases, k.clock])
        self._give_back = Script(client, scripts.GIVE_BACK, [k.leases, k.owners, k.returned, k.attempts, k.drawing])

    def lease(self, want: int, served_version: int, asked: Asked = LATEST) -> Grant:
        """Asks for up to `want` prompt indices.

        Args:
            want: as many as there is room for.
            served_version: what the server draws with.
            asked: the lag that it follows. Nothing is given while it serves a newer version than that, or while the
                operator wants another lag by now: a group's lag is the one that counted when its lease was taken.

        Raises:
            StreamError, OutOfMemoryError.

        """
        c = self._credit
        staleness = [c.versions, c.groups_per_version]
        wish = b"" if asked.wish is None else b"+" + asked.wish
        resolved = (asked.lag, wish, "" if asked.version is None else asked.version)
        limits = (want, *staleness, c.max_bytes, c.least_bytes, c.group_bytes, self._lease_ms)
        reason, *indices = self._lease(self._server_id, *limits, served_version, *resolved)
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

    def held(self) -> list[int]:
        """The indices that are leased to this server, ascending; after a crash or an outage more than it knows of."""
        owner = self._server_id.encode()
        with translated():
            owners = self._client.hgetall(self._keys.owners)
        held = (untrusted.number(index) for index, server in owners.items() if server == owner)
        return sorted(index for index in held if index is not None)

    def attempts(self, index: int) -> int:
        """How often generating this index has failed so far."""
        with translated():
            return int(self._client.hget(self._keys.attempts, str(index)) or 0)
