"""What happened, over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query

from services.control_plane.resources import LOOK, There
from services.control_plane.schemas import Answer, Event

ENTRY_ID = r"^[0-9]{1,18}(-[0-9]{1,18})?$"


class EventAnswer(Event):
    """Something that happened."""

    id: str
    """Grows with every event."""


class Events(Answer):
    """What happened, oldest first."""

    events: list[EventAnswer]
    next: str
    """Give it as `after` to hear what comes later."""


def add_events(app: FastAPI) -> None:
    """The route."""

    @app.get("/v1/events", tags=["run"], summary="What happened", **LOOK)
    def events(
        there: There,
        after: Annotated[str | None, Query(pattern=ENTRY_ID, description="An event's id: only later ones.")] = None,
        last: Annotated[int, Query(ge=1, le=1000, description="At most so many: the newest, or the first after.")] = 50,
        kind: Annotated[str | None, Query(max_length=64, description="Only events of this kind, `pause` say.")] = None,
    ) -> Events:
        """Every action of an operator, with who and when, and what the processes had to say; of any kind."""
        found, position = there.control.events_from(after, last, kind)
        return Events(events=[EventAnswer(id=name, **event) for name, event in found], next=position)
