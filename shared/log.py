"""Logs: one JSON object a line on stderr, always with run and component."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

Logger = structlog.typing.FilteringBoundLogger


def configure(run_id: str, component: str, level: str = "info") -> Logger:
    """Sets up logging for this process and returns its logger.

    Bind `policy_version` and `group_id` where they are known: `log.bind(policy_version=3)`.
    """
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(run=run_id, component=component)
    logger: Logger = structlog.get_logger()
    return logger
