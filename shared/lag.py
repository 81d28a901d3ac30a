"""Which lag a server is asked for now: a pure function of the setting, the seed, the server and the moment.

A server serves one version at a time, so lags are spread over servers (each draws once) or over the dwells of a
server (a stretch of so many published versions, or of so many of its groups, for which it keeps what it drew).
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from shared.config.lag import LagSetting, ServerLag

Arm = Literal["", "control"]
CONTROL: Arm = "control"  # at lag 0 on purpose, while the others lag
MAX_DWELL = 10**6
_DWELL = re.compile(r"([0-9]{1,7}) *(versions|groups)")


@dataclass(frozen=True)
class Dwell:
    """How long a server keeps what it drew."""

    length: int
    unit: Literal["versions", "groups"]  # published versions; groups that the server appended

    def number(self, version: int, groups: int) -> int:
        """Which dwell it is, counted from 0."""
        return (version if self.unit == "versions" else groups) // self.length

    def __str__(self) -> str:
        return f"{self.length} {self.unit}"


def parse_dwell(text: str) -> Dwell:
    """Reads `8 versions` or `32groups`. Raises ValueError."""
    found = _DWELL.fullmatch(text.strip())
    if found and 1 <= int(found[1]) <= MAX_DWELL:
        return Dwell(int(found[1]), "versions" if found[2] == "versions" else "groups")
    raise ValueError(f"a dwell is written as `8 versions` or `32 groups`, from 1 to {MAX_DWELL:,}")


@dataclass(frozen=True)
class Moment:
    """What a setting is looked at with."""

    version: int  # newest published policy_version
    step: int  # optimizer steps in it
    groups: int  # that the server has appended


@dataclass(frozen=True)
class Asked:
    """What a server is asked for, and for what that holds."""

    lag: int = 0  # versions
    arm: Arm = ""
    wish: bytes | None = None  # the operator's wish that it follows, as stored; None: whatever that is
    version: int | None = None  # holds for this newest version alone; None: for any


def resolve(setting: LagSetting, server_id: str, seed: int, moment: Moment) -> Asked:
    """The lag and the arm of a server at a moment.

    Args:
        setting: of the run.
        server_id: its own entry in `setting.servers` counts, if it has one.
        seed: of the run; draws are the same for the same seed, server and dwell, on every machine.
        moment: the newest version, its step, the server's groups.

    """
    own = setting.servers.get(server_id, setting)
    dwell = own.dwelling.number(moment.version, moment.groups) if own.dwelling else 0
    follows_versions = own.form.by_step or (own.dwelling is not None and own.dwelling.unit == "versions")
    version = moment.version if follows_versions else None
    if _is_control(own, seed, server_id, dwell):
        return Asked(0, CONTROL, version=version)
    return Asked(own.form.at(_uniform(seed, server_id, f"lag {dwell}"), moment.step), version=version)


def _is_control(own: ServerLag, seed: int, server_id: str, dwell: int) -> bool:
    """Of dwells exactly the share (each server begins elsewhere in the pattern), of servers each with that chance."""
    share, offset = own.control_share, _uniform(seed, server_id, "control")
    if own.dwelling is None:
        return offset < share
    return math.floor((dwell + 1) * share + offset) > math.floor(dwell * share + offset)


def _uniform(seed: int, server_id: str, what: str) -> float:
    """A number in [0, 1) that is the same everywhere for the same arguments."""
    digest = hashlib.blake2b(f"{seed}\n{server_id}\n{what}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
