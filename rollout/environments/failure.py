"""An environment failure with a short reason to count it by."""

from __future__ import annotations

from typing import Literal

from shared.errors import EnvironmentFailure

Reason = Literal["raised", "deadline", "hung", "answer", "too long", "engine"]


class Failure(EnvironmentFailure):
    """What made a group impossible; `reason` is the label under which it is counted."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def reason_of(error: EnvironmentFailure) -> str:
    """The label of a failure; a user's own EnvironmentFailure has none and counts as raised."""
    return error.reason if isinstance(error, Failure) else "raised"
