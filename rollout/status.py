"""What a rollout server says of itself: its state, and the numbers that go with it."""

from __future__ import annotations

import math
import os
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rollout.proof import Floor
from shared.config import Config
from shared.control import ControlState
from shared.heartbeat import Heartbeat

TOPICS = ("stop", "redis", "start", "evaluation", "sync", "append", "admission")  # what matters most comes first
LAST_PAUSES = 1000  # of which the heartbeat gives median and 99th percentile


def component_of(server_id: str) -> str:
    """A rollout server's name among the components."""
    return f"rollout:{server_id}"


class Status:
    """The state is what the server has said on the most important topic that it has said anything on."""

    def __init__(self, config: Config, control: ControlState, server_id: str, metrics_address: str) -> None:
        self._said: dict[str, str] = {}
        self._groups = 0
        self._tokens = 0
        self._pauses: deque[float] = deque(maxlen=LAST_PAUSES)
        self.heartbeat = Heartbeat(
            control,
            component_of(server_id),
            config.admission.lease_s,
            kind="rollout",
            pid=os.getpid(),
            host=socket.gethostname(),
            policy_version=-1,
            lag=0,
            largest_lag=config.rollout.largest_lag,
            arm="",
            lag_served=None,
            draining=False,
            in_flight=0,
            busy_share=0.0,
            groups=0,
            tokens=0,
            proof_max_nats=None,
            floor_mean_nats=None,
            floor_token_ess=None,
            pause_median_s=None,
            pause_p99_s=None,
            refused_version=None,
            refused_nats=None,
            metrics=metrics_address,
            engine=config.rollout.engine.kind,
            device=config.rollout.engine.device,
        )

    def say(self, topic: str, text: str) -> None:
        """What the server does, or waits for, on this topic; '' for nothing any more."""
        self._said[topic] = text
        self.heartbeat.set_state(next((said for name in TOPICS if (said := self._said.get(name))), "idle"))

    @contextmanager
    def during(self, topic: str, text: str) -> Iterator[None]:
        """Says so for as long as the block lasts."""
        before = self._said.get(topic, "")
        self.say(topic, text)
        try:
            yield
        finally:
            self.say(topic, before)

    def on_device(self, device: str) -> None:
        """The device that the engine found."""
        self.heartbeat.update(device=device)

    def serves(self, policy_version: int, floor: Floor) -> None:
        """A version was proven."""
        self.heartbeat.update(
            policy_version=policy_version,
            proof_max_nats=floor.max_nats,
            floor_mean_nats=floor.mean_nats,
            floor_token_ess=floor.token_ess,
            refused_version=None,
            refused_nats=None,
        )

    def serves_nothing(self) -> None:
        """The engine has weights that are not proven."""
        self.heartbeat.update(policy_version=-1)

    def refuses(self, policy_version: int, nats: float) -> None:
        """A version could not be proven, so nothing is served."""
        self.heartbeat.update(
            policy_version=-1, refused_version=policy_version, refused_nats=nats if math.isfinite(nats) else None
        )

    def paused(self, seconds: float) -> None:
        """Generation stood still so long for a new version."""
        self._pauses.append(seconds)
        self.heartbeat.update(pause_median_s=quantile(self._pauses, 0.5), pause_p99_s=quantile(self._pauses, 0.99))

    def lags(self, asked: int, arm: str, served: int | None) -> None:
        """The lag that is asked for, its arm, and how far what is served is behind the latest; None: no ancestor."""
        self.heartbeat.update(lag=asked, arm=arm, lag_served=served)

    def drains(self, draining: bool) -> None:
        """Whether it takes no new groups because an operator wants that."""
        self.heartbeat.update(draining=draining)

    def in_flight(self, groups: int) -> None:
        """How many groups are being generated."""
        self.heartbeat.update(in_flight=groups)

    def busy(self, share: float) -> None:
        """For what share of the last minute groups were being generated; goes on changing while none is."""
        self.heartbeat.note(busy_share=round(share, 3))

    def appended(self, tokens: int) -> None:
        """One more group is in the stream."""
        self._groups += 1
        self._tokens += tokens
        self.heartbeat.update(groups=self._groups, tokens=self._tokens)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
