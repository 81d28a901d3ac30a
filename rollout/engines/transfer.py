"""What an engine is told of weights that come over the wire, and what vLLM is told of it in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shared.tensor_table import TensorRow

Receiving = Callable[[], Awaitable[None]]  # called when the engine stands ready to receive
EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class Meeting:
    """Where an engine meets the learner. The learner has rank 0 of the process group."""

    kind: str  # gloo | nccl
    epoch: int  # of the learner
    group: int  # its number, within the epoch: another one than before is to be joined first
    host: str
    port: int
    rank: int  # of the engine's first worker
    world_size: int
    deadline_s: float

    @property
    def number(self) -> tuple[int, int]:
        """Tells groups apart, also those of another learner."""
        return self.epoch, self.group


@runtime_checkable
class ReceivingEngine(Protocol):
    """An engine that weights can be sent to."""

    async def receive(
        self, meeting: Meeting, table: Sequence[TensorRow], policy_version: int, receiving: Receiving
    ) -> float:
        """Replace the weights by those that the learner sends; returns the seconds that generation paused.

        `receiving` is called when it may begin. Raises TransferError: they did not arrive, the engine lives.
        """
        ...


def init_info(meeting: Meeting) -> dict[str, Any]:
    """The arguments of vLLM's weight-transfer engine of that kind, for joining."""
    found = {
        "master_address": meeting.host,
        "master_port": meeting.port,
        "rank_offset": meeting.rank,
        "world_size": meeting.world_size,
    }
    if meeting.kind == "gloo":
        return {**found, "group": meeting.group, "deadline_s": meeting.deadline_s}
    return {**found, "packed": True}  # as vLLM's trainer sends by default


def update_info(kind: str, table: Sequence[TensorRow], *, untie: bool) -> dict[str, Any]:
    """The arguments for receiving. With `untie` the engine's own output layer takes the embedding's values."""
    found: dict[str, Any] = {
        "names": [row.name for row in table],
        "dtype_names": [row.dtype for row in table],
        "shapes": [list(row.shape) for row in table],
    }
    if kind == "gloo":
        found["head_from"] = next((r.name for r in table if untie and r.name.endswith(EMBEDDING)), None)
    return found
