"""Keys of the weights' way over the wire: from the learner's memory into vLLM's, without a file between."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.config.section import Seconds, Section


class TransferConfig(Section):
    """How weights reach the rollout servers. Files stay the way for whoever the wire does not reach."""

    kind: Literal["files", "nccl", "gloo"] = "files"
    """files: by the policy store alone. nccl: GPU to GPU, through vLLM's weight-transfer engine of that name.
    gloo: the same over TCP between CPUs, for trying it out."""
    host: str = Field("127.0.0.1", min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.:-]+$")
    """Name or address of the learner's machine, as the rollout servers reach it."""
    port: int = Field(0, ge=0, le=65_535)
    """Where the learner waits for the servers that join a transfer; 0 takes a free port each time."""
    ready_s: Seconds = 5.0
    """A server that is not ready for a transfer within this time takes the version's files instead."""
    deadline_s: Seconds = 60.0
    """Longest time for joining, and again for sending a version; beyond it the version goes by files."""
