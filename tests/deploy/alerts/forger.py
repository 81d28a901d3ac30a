"""Somebody who leases prompts as a rollout server does and appends groups that no healthy server would."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from services.load.groups import Shape, make_group
from shared.admission import Admission, Credit
from shared.codec import encode_group
from shared.config import Config
from shared.control import ControlState
from shared.errors import StreamError
from shared.keys import Keys
from shared.redis_client import connect
from shared.stream import GroupWriter
from shared.types import Group

PAUSE_S = 0.05
WITHOUT_END = 10**6  # of versions: it does not care for credit

Forge = Callable[[Group], bytes]


class Forger:
    """Appends what `forge` makes of a good group."""

    def __init__(self, config: Config, server_id: str = "forger") -> None:
        client, keys = connect(config), Keys(config.run.id)
        learner = config.learner
        credit = Credit(WITHOUT_END, learner.groups_per_publish, 2**40, config.group_bytes_bound, 30.0)
        self._admission = Admission(client, keys, server_id, credit)
        self._writer = GroupWriter(client, keys, server_id)
        self._control = ControlState(client, keys)
        self._config, self._server_id = config, server_id

    def append(self, forge: Forge, older: int = 0, tokens: int | None = None) -> bool:
        """One group, as if drawn by a version so much older than the latest; False where it got no prompt."""
        latest = self._control.latest()
        assert latest is not None
        indices = self._admission.lease(1, latest.policy_version).indices
        for index in indices:
            rollout = self._config.rollout
            shape = Shape(rollout.group_size, tokens or rollout.sampling.max_tokens)
            version = max(0, latest.policy_version - older)
            group = make_group(self._config.run.id, index, version, self._server_id, shape, time.time())
            self._writer.append(index, group.group_id, forge(group))
        return bool(indices)

    @contextmanager
    def at_work(self, forge: Forge, older: int = 0, tokens: int | None = None) -> Iterator[None]:
        """One group after the other, within the block."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(PAUSE_S):
                try:
                    self.append(forge, older, tokens)
                except StreamError:
                    continue  # it is another fault's Redis

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def good(group: Group) -> bytes:
    """As it is."""
    return encode_group(group)


def garbage(group: Group) -> bytes:
    """What cannot be decoded."""
    return encode_group(group)[:-7]


def claiming(nats: float) -> Forge:
    """Its first completion claims this log-prob for each token."""

    def forge(group: Group) -> bytes:
        first, *rest = group.trajectories
        claimed = np.full_like(first.behavior_logprobs, nats)
        return encode_group(replace(group, trajectories=(replace(first, behavior_logprobs=claimed), *rest)))

    return forge
