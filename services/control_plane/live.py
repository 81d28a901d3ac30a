"""What happens now, as server-sent events: one look a second for everybody who listens.

    Redis --one thread, once a second--> Feed of a run --a bounded queue each--> listeners

A listener that is too slow for its queue is let go; it comes back with the id of the last event that it has, and
what it missed is read for it. The ids hold both places, in the history and among the events of the run, so that any
replica can go on from them.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Message as Part
from starlette.types import Send

from services.control_plane import schemas
from services.control_plane.resources import LOOK, Run, There
from services.rounds import Rounds
from shared.errors import StreamError
from shared.history import History

LOOK_S = 1.0
STATUS_BYTES_PER_S = 100_000  # to each listener
SILENCE_S = 15.0  # after which a comment shows that the connection lives
STALLED_S = 30.0  # that a listener may take nothing at all
MAX_LISTENERS = 64  # of one process
QUEUE = 256  # messages that a listener may be behind
PAGE = 100  # rows, and events, in one look
RETRY_MS = 2000
_ID = re.compile(r"([0-9]{1,18}-[0-9]{1,18})/([0-9]{1,18}-[0-9]{1,18})")


@dataclass(frozen=True)
class Place:
    """How far somebody has heard: the newest entries of history and events."""

    row: str = "0-0"
    event: str = "0-0"

    def __str__(self) -> str:
        return f"{self.row}/{self.event}"

    @classmethod
    def read(cls, text: str) -> Place | None:
        """The place of an id, None for what is none."""
        found = _ID.fullmatch(text)
        return cls(*found.groups()) if found else None


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    kind: str  # status, step or event
    data: str  # JSON in one line
    place: Place

    def encoded(self) -> bytes:
        """As it goes over the wire."""
        return f"id: {self.place}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


def order(entry_id: str) -> tuple[int, int]:
    """What entries of a stream are ordered by."""
    first, _, second = entry_id.partition("-")
    return int(first), int(second or 0)


def news(run: Run, place: Place, count: int) -> tuple[list[Message], Place]:
    """What came after a place, rows first, and the place after it. Raises StreamError."""
    found = []
    for name, row in History(run.client, run.keys).after(place.row, count):
        place = replace(place, row=name)
        if not row:
            continue
        with suppress(ValidationError):  # of another release
            found.append(Message("step", schemas.Step.model_validate(row).model_dump_json(), place))
    events, last = run.control.events_from(place.event, count)
    for name, event in events:
        place = replace(place, event=name)
        found.append(Message("event", json.dumps({"id": name, **event}), place))
    return found, replace(place, event=last if "-" in last else place.event)


def newest(run: Run) -> Place:
    """The place of one who has heard all. Raises StreamError."""
    return Place(History(run.client, run.keys).newest_id(), run.control.newest_event_id())


Queue = asyncio.Queue[Message | None]  # to one listener; None ends it


@dataclass
class Feed:
    """Those who listen to one run."""

    run: Run
    place: Place
    status: str = ""  # as it was told last
    status_due: float = 0.0  # monotonic seconds
    listeners: set[Queue] = field(default_factory=set)
    task: asyncio.Task[None] | None = None

    def tell(self, messages: list[Message]) -> None:
        """Messages for everybody who listens."""
        for queue in list(self.listeners):
            give(queue, messages)


class Live:
    """Every feed of one process. All of it runs on the event loop, but for the looks at Redis."""

    def __init__(self, status_of: Callable[[Run], str]) -> None:
        self._status_of = status_of
        self._feeds: dict[str, Feed] = {}
        self._closed = False
        self._places = 0  # that are taken

    def close(self) -> None:
        """Ends every stream; from the event loop's thread."""
        self._closed = True
        for feed in self._feeds.values():
            for queue in feed.listeners:
                _end(queue)

    @contextmanager
    def place(self) -> Iterator[Queue]:
        """One of the places to listen, until its answer has ended. Raises HTTPException where all are taken."""
        if self._closed or self._places >= MAX_LISTENERS:
            text = f"{MAX_LISTENERS} already listen here; close one, or ask /v1/status now and then"
            raise HTTPException(503, text, headers={"Retry-After": "10"})
        queue = Queue(QUEUE)
        self._places += 1
        try:
            yield queue
        finally:
            self._places -= 1
            self._leave(queue)

    async def listen(self, run: Run, queue: Queue, since: Place | None, now: tuple[Place, str]) -> AsyncIterator[bytes]:
        """The events of a run from a place on, else from now on, which is what `look` has found."""
        feed = self._join(run, queue, now)
        heard = now[0] if since is None else since
        yield f"retry: {RETRY_MS}\n\n".encode()
        yield Message("status", feed.status, heard).encoded()
        while True:
            try:
                missed = (await asyncio.to_thread(news, run, heard, PAGE))[0]
            except StreamError:
                return  # an end, and no broken answer: what was missed is asked for again, from the same place
            if not missed:
                break
            for message in missed:
                heard = message.place
                yield message.encoded()
        async for said in told(queue):
            if said is None:
                yield b": still here\n\n"
            elif said.kind == "status" or _is_new(said, heard):
                heard = _further(heard, said.place)
                yield replace(said, place=heard).encoded()

    async def look(self, run: Run) -> tuple[Place, str]:
        """Where one who begins to listen now stands. Raises StreamError."""
        return await asyncio.to_thread(lambda: (newest(run), self._status_of(run)))

    def _join(self, run: Run, queue: Queue, now: tuple[Place, str]) -> Feed:
        feed = self._feeds.setdefault(run.keys.run_id, Feed(run, *now))
        feed.listeners.add(queue)
        if feed.task is None:
            feed.task = asyncio.create_task(self._follow(feed))
        if self._closed:
            _end(queue)
        return feed

    def _leave(self, queue: Queue) -> None:
        for run_id, feed in list(self._feeds.items()):
            feed.listeners.discard(queue)
            if not feed.listeners and feed.task is not None:
                del self._feeds[run_id]
                feed.task.cancel()

    async def _follow(self, feed: Feed) -> None:
        """Looks once a second, for as long as anybody listens, whatever it meets."""
        rounds = Rounds("a look for the live stream")
        while True:
            await asyncio.sleep(LOOK_S)
            with rounds:
                messages, feed.place = await asyncio.to_thread(news, feed.run, feed.place, PAGE)
                feed.tell(messages)  # first: these are read once, and the status may be unreadable
                feed.tell(await self._new_status(feed))

    async def _new_status(self, feed: Feed) -> list[Message]:
        """The status where it has changed; that of a thousand servers is half a megabyte, and comes less often."""
        now = time.monotonic()
        if now < feed.status_due:
            return []
        status = await asyncio.to_thread(self._status_of, feed.run)
        feed.status_due = now + len(status) / STATUS_BYTES_PER_S
        if status == feed.status:
            return []
        feed.status = status
        return [Message("status", status, feed.place)]


def give(queue: Queue, messages: list[Message]) -> None:
    """Messages to a listener; one that has not taken the earlier ones is let go."""
    if queue.qsize() + len(messages) >= QUEUE:
        _end(queue)
        return
    for message in messages:
        queue.put_nowait(message)


def _end(queue: Queue) -> None:
    """Lets a listener go: what it has not taken yet it will ask for when it comes back."""
    while not queue.empty():
        queue.get_nowait()
    queue.put_nowait(None)


async def told(queue: Queue) -> AsyncIterator[Message | None]:
    """The queue's messages until it ends; None after a silence."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                message = await queue.get()
        except TimeoutError:
            yield None
            continue
        if message is None:
            return
        yield message


class Stream(StreamingResponse):
    """An answer that ends where nobody reads it."""

    async def stream_response(self, send: Send) -> None:
        """Sends, each part within a deadline."""

        async def within(message: Part) -> None:
            async with asyncio.timeout(STALLED_S):
                await send(message)

        with suppress(TimeoutError):
            await super().stream_response(within)


def _is_new(message: Message, heard: Place) -> bool:
    mine, theirs = (heard.row, message.place.row) if message.kind == "step" else (heard.event, message.place.event)
    return order(theirs) > order(mine)


def _further(heard: Place, place: Place) -> Place:
    return Place(max(heard.row, place.row, key=order), max(heard.event, place.event, key=order))


DESCRIBED: dict[str, Any] = LOOK | {
    "responses": LOOK["responses"]
    | {
        200: {
            "description": "`event: status` (as /v1/status, when it changed, at most once a second), `event: step` (a "
            "step's record), `event: event` (as in /v1/events), a comment after 15 s of silence.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'id: 1800000000000-0/1800000000000-1\nevent: event\ndata: {"kind": "pause", ...}\n\n',
                }
            },
        }
    }
}


async def _place(request: Request) -> AsyncIterator[Queue]:
    hub: Live = request.app.state.live
    with hub.place() as queue:
        yield queue


def add_live(app: FastAPI) -> None:
    """The route."""

    @app.get("/v1/live", tags=["run"], summary="What happens now", response_class=Response, **DESCRIBED)
    async def live(
        there: There,
        queue: Annotated[Queue, Depends(_place)],
        request: Request,
        last_event_id: Annotated[str | None, Header(max_length=80, description="Goes on after this event.")] = None,
    ) -> Response:
        """Server-sent events, until either side ends it. Read it with fetch(), which can send the token."""
        hub: Live = request.app.state.live
        now = await hub.look(there)
        since = Place.read(last_event_id) if last_event_id else None
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return Stream(hub.listen(there, queue, since, now), media_type="text/event-stream", headers=headers)
