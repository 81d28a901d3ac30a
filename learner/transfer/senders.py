"""The process groups that weights go out by. The learner is rank 0 in all of them, and the only one that sends.

Both block in C++ code until their peers come; a `Task` keeps the learner's own thread free to watch its deadline.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import Any, Protocol

import torch
import torch.distributed
from torch import Tensor

from shared.errors import ConfigError, TransferError

c10d: Any = torch.distributed  # what its stubs leave out is needed here
POLL_S = 0.005
Tensors = Callable[[], Iterable[tuple[str, Tensor]]]


class Sender(Protocol):
    """One process group at a time. `open` and `send` block, and raise TransferError."""

    revocable: bool
    """True where `close` ends a transfer that hangs."""

    def listen(self, host: str, port: int) -> int:
        """Begins to wait for the servers there; returns the port."""
        ...

    def open(self, world_size: int, group: int, deadline_s: float) -> None:
        """Forms the process group with all of them."""
        ...

    def send(self, tensors: Tensors) -> None:
        """Broadcasts the tensors in this order."""
        ...

    def close(self) -> None:
        """Leaves the group; peers that still wait in it get an error."""
        ...


class Task:
    """A call in a thread of its own, which nobody has to wait for."""

    def __init__(self, what: str, call: Callable[[], None]) -> None:
        self.what = what
        self.failure: str | None = None
        self._call = call
        self._thread = Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    def done(self, wait_s: float) -> bool:
        """True if it ended within this time; `failure` then says how."""
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._call()
        except (TransferError, RuntimeError, OSError, ValueError) as error:  # torch's are RuntimeErrors
            self.failure = str(error).splitlines()[0] if str(error) else type(error).__name__


class GlooSender:
    """Broadcasts over TCP, by torch's gloo; no default process group is needed or touched."""

    revocable = True

    def __init__(self) -> None:
        self._host = ""
        self._port = 0
        self._listening: socket.socket | None = None
        self._store: Any = None
        self._group: Any = None
        self._turn = 0  # of listening; an `open` that was given up ends later, and in vain

    def listen(self, host: str, port: int) -> int:
        """Listens at this address only: torch would at every one."""
        self.close()
        try:
            self._listening = socket.create_server((host, port))
        except OSError as error:
            raise ConfigError(f"store.transfer: cannot listen at {host}, port {port}: {error}") from None
        self._host, self._port = host, self._listening.getsockname()[1]
        return self._port

    def open(self, world_size: int, group: int, deadline_s: float) -> None:
        """Raises RuntimeError where somebody does not come in time."""
        assert self._listening is not None, "listen first"
        listening, self._listening, turn = self._listening, None, self._turn
        limit = timedelta(seconds=deadline_s)
        store = c10d.TCPStore(
            self._host, self._port, world_size, True, limit, wait_for_workers=False, master_listen_fd=listening.detach()
        )
        if not self._wait_for_all(store, [f"{group}/{rank}" for rank in range(1, world_size)], turn, deadline_s):
            return
        options = c10d.ProcessGroupGloo._Options()  # the only way to name the network interface
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=self._host)]
        options._timeout = limit
        opened = c10d.ProcessGroupGloo(c10d.PrefixStore(str(group), store), 0, world_size, options)
        if turn == self._turn:
            self._store, self._group = store, opened

    def _wait_for_all(self, store: Any, keys: list[str], turn: int, deadline_s: float) -> bool:
        """True once every rank has said that it comes; False where nobody waits for the group any more.

        The group's own constructor would wait too, but nothing ends it, not even the end of the process.
        """
        ends = time.monotonic() + deadline_s
        while not store.check(keys):
            if turn != self._turn:
                return False
            if time.monotonic() > ends:
                raise TransferError(f"not every server joined within {deadline_s:g} s")
            time.sleep(POLL_S)
        return True

    def send(self, tensors: Tensors) -> None:
        """One broadcast for each tensor, as bytes."""
        options = c10d.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        group = self._group
        if group is None:
            raise TransferError("the process group is not open")
        for _, tensor in tensors():
            flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            group.broadcast([flat], options).wait()

    def close(self) -> None:
        """Closes the connections."""
        self._group = self._store = None
        self._turn += 1
        if self._listening is not None:
            with suppress(OSError):
                self._listening.close()
        self._listening = None


def make_sender(kind: str) -> Sender:
    """The sender of store.transfer.kind. Raises ConfigError where it cannot work here."""
    if kind == "gloo":
        return GlooSender()
    from learner.transfer.nccl import NcclSender

    return NcclSender()
