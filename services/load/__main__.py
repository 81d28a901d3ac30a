"""`python -m services.load --config FILE [--set a.b=c ...]`: load for tests and capacity planning, without an engine.

Joins a run like rollout servers do (leases, credits, heartbeats, appends) and appends made-up groups at a set
rate. No engine draws them: a server announces the latest version as served at once, loads no weights and proves
nothing. Only for tests and for capacity planning, never beside a run whose model is wanted.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from services.load.groups import POISONS, Shape
from services.load.pace import AppendLog, Budget, Pace
from services.load.server import Job, LoadServer
from shared.config import Config, load_config
from shared.errors import ConfigError
from shared.log import configure
from shared.process import StopFlag, guard

WAKE_S = 0.2


def main() -> int:
    """0: the run is over, the count is reached, or it was asked to stop; 1: it failed; 2: it cannot begin."""
    parent = os.environ.get("TRUSTBATCH_PARENT_PID")
    guard(int(parent) if parent else None)
    arguments = parser().parse_args()
    try:
        return generate(load_config(arguments.config, arguments.set), arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    p = argparse.ArgumentParser(
        prog="trustbatch load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    p.add_argument("--rate", type=float, default=0.0, help="groups a second, all servers together; 0: as credit allows")
    p.add_argument("--servers", type=int, default=1, help="servers in this process")
    p.add_argument("--server-id", default="load", help="their names begin with it; unique within the run")
    p.add_argument("--group-size", type=int, help="completions of a group; default: rollout.group_size")
    p.add_argument("--tokens", type=int, help="of a completion; default: rollout.sampling.max_tokens")
    p.add_argument("--count", type=int, help="stop after so many groups are in the stream")
    p.add_argument("--poison-every", type=int, default=0, metavar="N", help="every Nth index gets a poisoned entry")
    p.add_argument("--poisons", default=",".join(POISONS), help="kinds, in turn: %(default)s")
    p.add_argument("--log", type=Path, help="file for one line per append: index, what Redis answered, time")
    return p


def generate(config: Config, arguments: argparse.Namespace) -> int:
    """Runs the servers of one process to their end. Raises ConfigError."""
    log = configure(config.run.id, f"load:{arguments.server_id}")
    stop, stopping = StopFlag().install(), threading.Event()
    job = Job(
        config=config,
        shape=_shape(config, arguments),
        pace=Pace(arguments.rate),
        budget=Budget(arguments.count),
        appends=AppendLog(arguments.log),
        log=log,
        stopping=stopping,
    )
    servers = [LoadServer(job, f"{arguments.server_id}{i}") for i in range(arguments.servers)]
    threads = [threading.Thread(target=server.run, name=server.server_id, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if stop:
            stopping.set()
        next(thread for thread in threads if thread.is_alive() or thread is threads[-1]).join(WAKE_S)
    job.appends.close()
    failures = [server.failure for server in servers if server.failure is not None]
    if failures and not stop:
        log.error("failed", reason=str(failures[0]), error=type(failures[0]).__name__)
        return 1
    log.info("stopped", reason=stop.reason or ("all groups are appended" if job.budget.spent else "the run is over"))
    return 0


def _shape(config: Config, arguments: argparse.Namespace) -> Shape:
    rollout = config.rollout
    shape = Shape(
        group_size=arguments.group_size or rollout.group_size,
        tokens=arguments.tokens or rollout.sampling.max_tokens,
        poison_every=arguments.poison_every,
        poisons=tuple(arguments.poisons.split(",")),
    )
    if unknown := set(shape.poisons) - set(POISONS):
        raise ConfigError(f"--poisons {', '.join(sorted(unknown))}: known are {', '.join(POISONS)}")
    if shape.group_size > rollout.group_size or shape.tokens > rollout.sampling.max_tokens:
        raise ConfigError(
            f"groups of {shape.group_size} x {shape.tokens} tokens exceed what admission reckons with: raise "
            f"rollout.group_size ({rollout.group_size}) or rollout.sampling.max_tokens ({rollout.sampling.max_tokens})"
        )
    if arguments.servers < 1 or arguments.rate < 0 or arguments.poison_every < 0:
        raise ConfigError("--servers must be at least 1, --rate and --poison-every at least 0")
    return shape


if __name__ == "__main__":
    sys.exit(main())
