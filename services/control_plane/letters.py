"""Dead letters over HTTP: what could not be trained on, why, and asking for it to be put back."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from starlette.exceptions import HTTPException

from services.control_plane import problems
from services.control_plane.events import ENTRY_ID
from services.control_plane.resources import BY, LOOK, OPERATE, Here, Run, There
from services.control_plane.schemas import Answer, DeadLetterTotals, Problem
from services.dead_letters import content
from shared.letters import DeadLetter, letter, letters, totals
from shared.wishes import Wishes


class LetterAnswer(Answer):
    """An entry of the stream that could not be trained on."""

    id: str
    group_id: str
    prompt_index: int | None
    """Null where it is none of this run."""
    reason: str
    error: str
    """What exactly is wrong."""
    server: str
    """That appended it; empty where that cannot be read."""
    at: float
    """Unix seconds."""
    size: int
    """Bytes of the payload."""
    requeue_wanted: bool
    """Somebody wants it back in the stream; the learner sees to it, and an event says what became of it."""


class LetterShown(LetterAnswer):
    """The same, and what is in it."""

    content: list[str]
    """The group's tokens, versions and rewards in lines of text; of what is no group its first bytes."""


class Letters(Answer):
    """Those that are kept, oldest first, and totals since the run began."""

    letters: list[LetterAnswer]
    next: str | None
    """Give it as `after` for more; null: these are all."""
    totals: dict[str, DeadLetterTotals]
    """By reason."""


class Requeued(Answer):
    """What is wanted of a dead letter."""

    id: str
    changed: bool
    """False where that was wanted already."""


NONE: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no such dead letter."}}
ONE = LOOK | {"responses": LOOK["responses"] | NONE}
BACK = OPERATE | {
    "status_code": 202,
    "responses": OPERATE["responses"] | NONE | {503: {"model": Problem, "description": "Too many wait already."}},
}
LetterId = Annotated[str, Path(pattern=ENTRY_ID, description="Of `/v1/dead-letters`.")]


def add_letters(app: FastAPI) -> None:
    """The routes."""

    @app.get("/v1/dead-letters", tags=["dead letters"], summary="What could not be trained on", **LOOK)
    def kept(
        there: There,
        after: Annotated[
            str | None, Query(pattern=ENTRY_ID, description="A dead letter's id: only later ones.")
        ] = None,
        first: Annotated[int, Query(ge=1, le=500, description="At most so many.")] = 100,
    ) -> Letters:
        """A page of those that are kept, without what is in them, and totals by reason since the run began."""
        wanted = Wishes(there.client, there.keys).requeues()
        page = list(islice(letters(there.client, there.keys, after), first + 1))
        by_reason = totals(there.client, there.keys)
        return Letters(
            letters=[LetterAnswer(**_known(found, wanted)) for found in page[:first]],
            next=page[first - 1].id if len(page) > first else None,
            totals={reason: DeadLetterTotals(**vars(t)) for reason, t in by_reason.items()},
        )

    @app.get("/v1/dead-letters/{letter_id}", tags=["dead letters"], summary="One dead letter", **ONE)
    def show(there: There, letter_id: LetterId) -> LetterShown:
        """What is wrong with it and what is in it, as far as that can be decoded."""
        found = _found(there, letter_id)
        wanted = Wishes(there.client, there.keys).requeues()
        return LetterShown(**_known(found, wanted), content=content(found))

    @app.post("/v1/dead-letters/{letter_id}/requeue", tags=["operator"], summary="Put it back", **BACK)
    def requeue(here: Here, same_site: problems.SameSite, no_body: problems.NoBody, letter_id: LetterId) -> Requeued:
        """The learner puts it back as its server had appended it, or refuses; an event says which. May be repeated."""
        found = _found(here.run, letter_id)
        return Requeued(id=found.id, changed=Wishes(here.client, here.keys).requeue(found.id, BY))


def _found(there: Run, letter_id: str) -> DeadLetter:
    found = letter(there.client, there.keys, letter_id)
    if found is None:
        text = f"there is no dead letter {letter_id}; /v1/dead-letters lists those that are kept"
        raise HTTPException(404, text)
    return found


def _known(found: DeadLetter, wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": found.id,
        "group_id": found.group_id,
        "prompt_index": found.prompt_index if found.prompt_index >= 0 else None,
        "reason": found.reason,
        "error": found.error,
        "server": found.server,
        "at": found.at,
        "size": found.size,
        "requeue_wanted": found.id in wanted,
    }
