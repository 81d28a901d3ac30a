"""What keeps a loop in the background going."""

from __future__ import annotations

import logging
from types import TracebackType

from shared.errors import StreamError

_LOG = logging.getLogger(__name__)


class Rounds:
    """Around each round of a loop: one that fails is logged, once until one goes well, and is not the last."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said: type[BaseException] | None = None

    def __enter__(self) -> None:
        """Begins a round."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Keeps an error to itself; not the end of the process or of the task."""
        if kind is not None and not issubclass(kind, Exception):
            return False
        if kind is not None and kind is not self._said:
            known = issubclass(kind, StreamError)
            _LOG.warning("%s failed, and is tried again: %s", self._what, error, exc_info=None if known else error)
        self._said = kind
        return True
