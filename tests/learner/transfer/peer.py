"""A rollout server's end of a transfer, played by a thread: real Redis, real process groups, no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed

from shared.control import ControlState
from shared.keys import Keys
from shared.redis_client import Client
from shared.transfer import Answer, Call, Said, Transfers

c10d: Any = torch.distributed
Fault = Literal["", "absent", "vanishes", "breaks off", "refuses"]
DEADLINE_S = 10.0


def join(host: str, port: int, rank: int, world_size: int, group: int) -> Any:
    """The process group, once everybody is there."""
    limit = timedelta(seconds=DEADLINE_S)
    store = c10d.TCPStore(host, port, world_size, False, limit, wait_for_workers=False)
    store.set(f"{group}/{rank}", "here")
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    options._timeout = limit
    return c10d.ProcessGroupGloo(c10d.PrefixStore(str(group), store), rank, world_size, options)


def receive(group: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """One float32 tensor of rank 0's."""
    options = c10d.BroadcastOptions()
    options.rootRank = options.rootTensor = 0
    tensor: Any = torch.empty(shape)
    group.broadcast([tensor.reshape(-1).view(torch.uint8)], options).wait()
    return torch.as_tensor(tensor)


class Peer:
    """Receives whatever it is called for; `fault` is what it does instead, from now on."""

    def __init__(self, client: Client, keys: Keys, server_id: str, shapes: Sequence[tuple[int, ...]]) -> None:
        self.server_id = server_id
        self.fault: Fault = ""
        self.versions: list[int] = []
        self.groups: list[int] = []
        self.tensors: list[torch.Tensor] = []
        self.why = ""
        self._shapes = shapes
        self._transfers = Transfers(client, keys)
        self._control = ControlState(client, keys)
        self._group: Any = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"peer {server_id}", daemon=True)
        self.beat()
        self._thread.start()

    def beat(self, **changes: Any) -> None:
        """Its heartbeat: it serves and can receive."""
        status = {"kind": "rollout", "lag": 0, "policy_version": 0, "transfer": "gloo", "ranks": 1, **changes}
        self._control.beat(f"rollout:{self.server_id}", status, 60)

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), f"{self.server_id} hangs"

    def _run(self) -> None:
        answered = (0, 0)
        while not self._ended.is_set():
            call = self._transfers.current()
            if call is None or (call.epoch, call.number) <= answered or self.fault == "absent":
                time.sleep(0.002)
                continue
            answered = call.epoch, call.number
            if call.stage == "invite" and self.server_id in call.invited:
                self._say(call, "here")
            elif call.stage == "go" and self.server_id in call.ranks and self.fault != "vanishes":
                self._follow(call)

    def _follow(self, call: Call) -> None:
        try:
            self._join(call)
            self._say(call, "receiving")
            self.tensors = self._receive(len(self._shapes) // 2 if self.fault == "breaks off" else len(self._shapes))
        except RuntimeError as error:
            self.why = str(error).splitlines()[0]
            self._group = None
            self._say(call, "failed", self.why)
            return
        if self.fault == "breaks off":
            self._group = None  # as a killed process: its connections are closed, and it says nothing
            return
        if self.fault == "refuses":
            self._say(call, "failed", "its checksum differs")
            return
        self.versions.append(call.policy_version)
        self._say(call, "received")

    def _join(self, call: Call) -> None:
        if self._group is None or self.groups[-1] != call.group:
            self._group = join(call.host, call.port, call.ranks[self.server_id], call.world_size, call.group)
            self.groups.append(call.group)

    def _receive(self, count: int) -> list[torch.Tensor]:
        return [receive(self._group, shape) for shape in self._shapes[:count]]

    def _say(self, call: Call, said: Said, why: str = "") -> None:
        self._transfers.answer(self.server_id, Answer(call.epoch, call.number, said, why))
