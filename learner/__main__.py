"""`python -m learner --config FILE [--set a.b=c ...]`: trains until the run is over."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from shared.config import Config, load_config
from shared.errors import ConfigError, TrustbatchError
from shared.process import UNFINISHED, StopFlag, guard

PARENT = "TRUSTBATCH_PARENT_PID"


def main() -> int:
    """The process. 0: the run is over or was stopped in order (75 with --again); 1: it failed; 2: it cannot begin."""
    parent = os.environ.get(PARENT)
    guard(int(parent) if parent else None)
    parser = argparse.ArgumentParser(prog="python -m learner", description="Trains the policy of one run.")
    parser.add_argument("--config", type=Path, help="the run's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    parser.add_argument("--again", action="store_true", help="leave with 75 where stopped before the run is over")
    arguments = parser.parse_args()
    try:
        code, finished = train(load_config(arguments.config, arguments.set))
        return UNFINISHED if arguments.again and code == 0 and not finished else code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def train(config: Config) -> tuple[int, bool]:
    """Runs the learner of a configuration; exit code, and whether the run is finished. Raises ConfigError."""
    from shared.log import configure
    from shared.redis_client import connect

    log = configure(config.run.id, "learner")
    stop = StopFlag().install()
    client = connect(config)

    from learner.loop import Learner  # torch and transformers take seconds to load
    from learner.model import use_configured_threads
    from shared.metrics import LearnerMetrics, serve
    from shared.probe import Probes

    use_configured_threads()
    metrics, probes = LearnerMetrics(), Probes()
    try:
        server, _, address = serve(metrics.registry, config.metrics.host, config.metrics.port)
    except OSError as error:
        raise ConfigError(f"metrics.host and metrics.port: cannot listen there: {error}") from None
    probes.install(server)
    try:
        learner = Learner(config, client, log, stop, metrics, address)
        probes.watch(lambda: learner.heartbeat.standing(config.metrics.stalled_after_s))
        learner.run()
    except ConfigError:
        raise
    except TrustbatchError as error:
        log.error("failed", reason=str(error), error=type(error).__name__)
        return 1, False
    return 0, learner.finished


if __name__ == "__main__":
    sys.exit(main())
