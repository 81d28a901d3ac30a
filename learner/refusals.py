"""What rollout servers say of versions that they cannot prove, for the learner's state, log and last words."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from shared.control import ControlState
from shared.log import Logger

LOOK_S = 1.0

Members = Mapping[str, dict[str, Any] | None]


class Refusals:
    """Hears of refused versions while the learner waits, and logs each once."""

    def __init__(self, control: ControlState, log: Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._control = control
        self._log = log
        self._clock = clock
        self._asked = -LOOK_S
        self._heard: set[tuple[str, int]] = set()
        self.text = ""

    def hear(self) -> str:
        """Who refuses what now, '' where nobody does; asks Redis at most once a second. Raises StreamError."""
        if self._clock() - self._asked >= LOOK_S:
            self._asked = self._clock()
            self.text = self._tell(self._control.members())
        return self.text

    def _tell(self, members: Members) -> str:
        said = []
        for component, version, text in refusals(members):
            if (component, version) not in self._heard:
                self._heard.add((component, version))
                self._log.error("a version is refused", by=component, refused=version, reason=text)
            said.append(f"{component} {text}")
        return "; ".join(said)


def refusals(members: Members) -> list[tuple[str, int, str]]:
    """(component, policy_version, what it says) of every living rollout server that cannot prove its version."""
    found = []
    for component, status in members.items():
        if status is not None and (version := status.get("refused_version")) is not None:
            nats = status.get("refused_nats")
            off = "its probe could not be compared" if nats is None else f"its probe is off by {nats:.3g} nats"
            found.append((component, version, f"refuses version {version}: {off}"))
    return found
