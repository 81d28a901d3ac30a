"""How `trustbatch up` starts each process: the same entry points that compose and Kubernetes use."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.children import ChildSpec
from services.gpus import VISIBLE_ENV, share_out, visible_gpus
from services.machine import threads_per_process, usable_cores
from shared.config import Config, secrets
from shared.config.load import ENV_PREFIX
from shared.config.secrets import SECRET_KEYS

THREADS_ENV = "OMP_NUM_THREADS"

LEARNER = "learner"
CONTROL_PLANE = "control-plane"


@dataclass(frozen=True)
class Programs:
    """The interpreter's arguments for each kind of process; `--config FILE` follows."""

    learner: Sequence[str] = ("-m", "learner")
    rollout: Sequence[str] = ("-m", "rollout")
    control_plane: Sequence[str] = ("-m", "services.control_plane")


PROGRAMS = Programs()


def rollout_name(number: int) -> str:
    """The component of the rollout server with this number on this machine."""
    return f"rollout:r{number}"


def processes(
    config: Config, config_file: Path, keep_open: Sequence[int], programs: Programs = PROGRAMS
) -> list[ChildSpec]:
    """The loop's processes on this machine, in the order in which they are started."""
    file = ["--config", str(config_file)]
    learner_gpus, server_gpus = share_out(config, visible_gpus())
    servers = [
        _spec(config, rollout_name(i), [*programs.rollout, *file, "--server-id", f"r{i}"], keep_open, gpus)
        for i, gpus in enumerate(server_gpus)
    ]
    return [
        _spec(config, CONTROL_PLANE, [*programs.control_plane, *file], keep_open),
        _spec(config, LEARNER, [*programs.learner, *file], keep_open, learner_gpus),
        *servers,
    ]


def preparation(config: Config, name: str, arguments: Sequence[str], keep_open: Sequence[int]) -> ChildSpec:
    """A program that runs to its end before the loop begins, such as the making of the small model."""
    return replace(_spec(config, name, arguments, keep_open), guarded=False)


def threads(config: Config, environ: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Threads for each process that computes, and the reason in words."""
    if environ.get(THREADS_ENV, "").isdigit():
        return int(environ[THREADS_ENV]), f"{THREADS_ENV} is set"
    cores, processes = usable_cores(), 1 + config.rollout.servers
    return threads_per_process(cores, processes), f"{cores} cores for {processes} processes that compute"


def environment(config: Config, name: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A child's environment: the stored configuration file is the whole truth, only its secrets come beside it."""
    kept = {name: value for name, value in environ.items() if not name.startswith(ENV_PREFIX)}
    for key in SECRET_KEYS:
        secret = secrets.get(config, key)
        if secret and (name == CONTROL_PLANE or not key.startswith("control_plane.")):
            kept[ENV_PREFIX + key.replace(".", "__").upper()] = json.dumps(secret.get_secret_value())
    return {**kept, THREADS_ENV: str(threads(config, environ)[0]), "PYTHONUNBUFFERED": "1"}


def _spec(
    config: Config, name: str, arguments: Sequence[str], keep_open: Sequence[int], gpus: Sequence[str] = ()
) -> ChildSpec:
    return ChildSpec(
        name=name,
        argv=[sys.executable, *arguments],
        log=config.run.folder / "logs" / f"{name.replace(':', '-')}.jsonl",
        environ=environment(config, name) | ({VISIBLE_ENV: ",".join(gpus)} if gpus else {}),
        keep_open=keep_open,
    )
