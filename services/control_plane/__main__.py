"""`python -m services.control_plane`: serves the application and announces its address in a heartbeat."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

from shared.process import StopFlag, guard

GRACEFUL_S = 1
MAX_CONNECTIONS = 256


def main() -> int:
    """Runs until it is asked to stop. Returns the exit code."""
    parent = os.environ.get("TRUSTBATCH_PARENT_PID")
    guard(int(parent) if parent else None)
    from shared import log
    from shared.config import load_config
    from shared.errors import ConfigError, TrustbatchError

    arguments = _arguments()
    logger = None
    try:
        config = load_config(arguments.config, arguments.set)
        component = f"control-plane:{arguments.id}"
        logger = log.configure(config.run.id, component)
        _serve(config, component, logger)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except TrustbatchError as error:
        (logger.error if logger else print)(str(error))
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.control_plane", description=__doc__)
    parser.add_argument("--config", type=Path, default=None, help="YAML file; without it the defaults")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    parser.add_argument("--id", default=socket.gethostname(), help="names this control plane; default: the host")
    return parser.parse_args()


def _serve(config: Any, component: str, logger: Any) -> None:
    import uvicorn

    from services.control_plane.access import tls_settings
    from services.control_plane.app import REDIS_TIMEOUT_S, create_app
    from services.control_plane.guard import MAX_HEADER_BYTES
    from services.control_plane.server import Server
    from services.listening import address_of, listen
    from shared.control import ControlState
    from shared.errors import ConfigError
    from shared.heartbeat import Heartbeat
    from shared.keys import Keys
    from shared.redis_client import connect

    if config.redis.url is None:
        raise ConfigError("redis.url is not set: the control plane needs the Redis of the run that it shows")
    _forward_warnings(logger)
    app, encrypted = create_app(config), tls_settings(config)
    stop = StopFlag().install()  # uvicorn takes the signals over while it serves, and gives them back to this one
    listening = listen(config.control_plane.host, config.control_plane.port, "control_plane")
    address = address_of(config.control_plane.host, listening.getsockname()[1], "https" if encrypted else "http")
    client = connect(config, timeout_s=REDIS_TIMEOUT_S)
    who = {"kind": "control-plane", "pid": os.getpid(), "host": socket.gethostname(), "address": address}
    heartbeat = Heartbeat(ControlState(client, Keys(config.run.id)), component, config.admission.lease_s, **who)
    heartbeat.set_state("serving")
    heartbeat.start()
    logger.info("serving", address=address)
    try:
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACEFUL_S,
            http="h11",  # the parser that bounds headers
            ws="none",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
            proxy_headers=False,  # whom the rate limit counts is not for the request to say
            server_header=False,
            **encrypted,
        )
        server = Server(settings)
        stop.on_stop(lambda: setattr(server, "should_exit", True))
        server.should_exit = bool(stop)
        server.run(sockets=[listening])
    finally:
        listening.close()
        heartbeat.stop()
        client.close()


def _forward_warnings(logger: Any) -> None:
    """Warnings of uvicorn and the like, which use the standard library, become JSON lines too."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logger.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)

    logging.basicConfig(level=logging.WARNING, handlers=[Forward()])


if __name__ == "__main__":
    sys.exit(main())
