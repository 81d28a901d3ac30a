"""Logs: one JSON object a line on stderr, always with run and component."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

Logger = structlog.typing.FilteringBoundLogger


_every_line: dict[str, Any] = {}  # fields of all lines of this process, from whichever thread or task


def configure(run_id: str, component: str, level: str = "info") -> Logger:
    """Sets up logging for this process and returns its logger; every line names run and component."""
    _every_line.clear()
    on_every_line(run=run_id, component=component)
    structlog.configure(
        processors=[
            _add_fields,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logger: Logger = structlog.get_logger()
    return logger


def on_every_line(**fields: Any) -> None:
    """Fields that every line of this process has from now on, such as the policy_version that it stands at."""
    _every_line.update(fields)


def _add_fields(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**_every_line, **event}
