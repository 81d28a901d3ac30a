"""Which GPU each process of one machine gets: the learner one, every rollout server as many as its engine spans."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from shared.config import Config

VISIBLE_ENV = "CUDA_VISIBLE_DEVICES"
_DEVICES = Path("/dev")


def visible_gpus(environ: Mapping[str, str] = os.environ, devices: Path = _DEVICES) -> list[str]:
    """The GPUs that this process may use, as CUDA names them; nothing heavy is imported to find out."""
    if VISIBLE_ENV in environ:
        return [name.strip() for name in environ[VISIBLE_ENV].split(",") if name.strip()]
    numbers = [match[1] for path in devices.glob("nvidia*") if (match := re.fullmatch(r"nvidia(\d+)", path.name))]
    return sorted(numbers, key=int)


def share_out(config: Config, gpus: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """GPUs of the learner, and of each rollout server; nobody is cut off from any where there are too few for that."""
    engine = config.rollout.engine
    span = getattr(engine, "tensor_parallel_size", 1)
    for_learner = 0 if config.learner.device == "cpu" else 1
    for_server = 0 if engine.device == "cpu" else span
    everything = list(gpus)
    if len(gpus) < for_learner + for_server * config.rollout.servers:
        return everything, [everything] * config.rollout.servers
    starts = [for_learner + i * for_server for i in range(config.rollout.servers)]
    return everything[:for_learner], [everything[start : start + for_server] for start in starts]
