"""One rollout server as a process: `python -m rollout --config FILE [--set a.b=c ...] --server-id r0`."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import os
import signal
import sys
from pathlib import Path

from rollout.admit import DISMISSED
from rollout.parts import Parts
from shared.config import Config, load_config
from shared.errors import ConfigError, TrustbatchError
from shared.log import configure
from shared.metrics import RolloutMetrics, serve
from shared.probe import Probes
from shared.process import UNFINISHED, StopFlag, guard

TICK_S = 1.0
ENDS = {"finished": "the run is over", DISMISSED: "an operator has removed this server"}
LAST_RESORT_S = 7.5  # from the order to stop to SIGALRM, which ends the process whatever hangs in it


def main() -> int:
    """Returns 0 after an orderly stop, 1 where server or run could not go on, 2 for a wrong configuration."""
    parent = os.environ.get("TRUSTBATCH_PARENT_PID")
    guard(int(parent) if parent else None)
    parser = argparse.ArgumentParser(prog="python -m rollout", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    parser.add_argument("--server-id", required=True, help="name of this server, unique within the run")
    parser.add_argument("--again", action="store_true", help="leave with 75 where stopped before the run is over")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.set)
        return _serve(config, arguments.server_id, UNFINISHED if arguments.again else 0)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _serve(config: Config, server_id: str, stopped: int) -> int:
    log = configure(config.run.id, f"rollout:{server_id}")
    metrics, probes = RolloutMetrics(), Probes()
    try:
        endpoint, _, address = serve(metrics.registry, config.metrics.host, config.metrics.port)
    except OSError as error:
        raise ConfigError(f"metrics.host {config.metrics.host}, metrics.port {config.metrics.port}: {error}") from error
    probes.install(endpoint)
    status = [1]  # until an orderly end
    atexit.register(_leave_with, status)
    flag = StopFlag().install()
    flag.on_stop(_arm_last_resort)
    log.info("rollout server starts", pid=os.getpid(), metrics=address)
    try:
        parts = Parts.connect(config, server_id, metrics, address, log)
        probes.watch(lambda: parts.status.heartbeat.standing(config.metrics.stalled_after_s))
        over = asyncio.run(_until_stopped(parts, flag))
    except ConfigError:
        status[0] = 2
        raise
    except TrustbatchError as error:
        log.error("rollout server stops", error=type(error).__name__, reason=str(error))
        return 1
    log.info("rollout server stopped", reason=flag.reason or ENDS[over])
    status[0] = 0 if over else stopped
    return status[0]


async def _until_stopped(parts: Parts, flag: StopFlag) -> str:
    """Serves; which of ENDS ended it, '' for a signal.

    Raises:
        TrustbatchError: the server cannot go on, or the run has failed: started again, it joins the next learner.

    """
    from rollout.server import RolloutServer

    server = RolloutServer(parts)
    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(server.stop)

    flag.on_stop(wake)
    if flag:  # it came while the server was being built
        server.stop()
    ticking = asyncio.ensure_future(_tick(parts))
    try:
        await server.run()
    finally:
        ticking.cancel()
    if server.over not in ("", *ENDS):
        raise TrustbatchError("the run has failed, by its learner's word; start this server again to join the next one")
    return server.over


async def _tick(parts: Parts) -> None:
    """Says that the event loop turns, which nothing else does while a long group is generated, or none is."""
    while True:
        parts.status.busy(parts.busy.share())
        await asyncio.sleep(TICK_S)


def _arm_last_resort() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, LAST_RESORT_S)


def _leave_with(status: list[int]) -> None:
    """The last exit function, being the first registered. What is left, taking torch and vLLM apart, takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status[0])


if __name__ == "__main__":
    sys.exit(main())
