"""A real rollout server that does wrong while a file of that name lies in its folder (CROOKED):

wrong-weights: its engine answers the probe as other weights would     noisy: the same, but only by a small noise
unreadable: it cannot read the store                                   slow: every group takes a second longer
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rollout.__main__
import rollout.sync
import shared.store
from rollout.engines.renewable import RenewableEngine
from shared.errors import StoreError
from shared.types import Completion, Float32Array

FLAGS = "CROOKED"
NOISE_NATS = 1e-4
SLOW_S = 1.0

honest_logprobs, honest_generate = RenewableEngine.logprobs, RenewableEngine.generate


def told_to(flag: str) -> bool:
    return (Path(os.environ[FLAGS]) / flag).exists()


async def logprobs(self: RenewableEngine, token_ids: Any) -> Float32Array:
    values = await honest_logprobs(self, token_ids)
    if told_to("noisy"):
        values = values + NOISE_NATS
    return values + 1.0 if told_to("wrong-weights") else values


async def generate(self: RenewableEngine, *arguments: Any, **more: Any) -> list[Completion]:
    if told_to("slow"):
        await asyncio.sleep(SLOW_S)
    return await honest_generate(self, *arguments, **more)


def open_store(*arguments: Any, **more: Any) -> Any:
    store: Any = shared.store.open_store(*arguments, **more)
    honest_hold: Callable[..., Any] = store.hold

    def hold(*wanted: Any, **how: Any) -> Any:
        if told_to("unreadable"):
            raise StoreError("the link to the store is cut")
        return honest_hold(*wanted, **how)

    store.hold = hold
    return store


if __name__ == "__main__":
    for owner, name, lie in (
        (RenewableEngine, "logprobs", logprobs),
        (RenewableEngine, "generate", generate),
        (rollout.sync, "open_store", open_store),
    ):
        setattr(owner, name, lie)
    sys.exit(rollout.__main__.main())
