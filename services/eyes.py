"""What `trustbatch up` and `trustbatch top` see of a run, from its Redis or through a control plane."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from services.progress import Progress, Tracker
from services.status import Member, RunStatus, read_status
from services.verdict import Verdict, verdict
from shared.config import Config
from shared.control import ControlState, EvaluationResult, Latest
from shared.errors import AccessError, StreamError
from shared.keys import Keys
from shared.letters import ReasonTotals
from shared.redis_client import connect
from shared.stream import Backlog

if TYPE_CHECKING:
    from services.control_plane import schemas

TIMEOUT_S = 2.0
MOST_ROWS = 2000  # of history that is asked for at once
MOST_BYTES = 64 * 2**20  # of an answer
TOKENS = ("TRUSTBATCH__CONTROL_PLANE__READ_TOKEN", "TRUSTBATCH__CONTROL_PLANE__OPERATE_TOKEN")
Row = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class Source(Protocol):
    """Where a run is looked at. Every call raises StreamError where nobody answers."""

    def steps(self) -> int:
        """Optimizer steps after which the run is over."""

    def status(self) -> RunStatus:
        """Where it stands."""

    def history(self, last: int) -> Sequence[Row]:
        """The newest step records, oldest first."""

    def close(self) -> None:
        """Gives the connection back."""


class RedisSource:
    """The run's own Redis."""

    def __init__(self, config: Config) -> None:
        self.keys = Keys(config.run.id)
        self.client = connect(config, timeout_s=TIMEOUT_S)
        self.control = ControlState(self.client, self.keys)
        self._steps = config.learner.steps

    def steps(self) -> int:
        """As configured."""
        return self._steps

    def status(self) -> RunStatus:
        """From the control state."""
        return read_status(self.client, self.keys, events=1)

    def history(self, last: int) -> Sequence[Row]:
        """From the control state."""
        return self.control.history(last=last)

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the address that was given, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        """None is followed."""


class HttpSource:
    """A control plane, asked with the token that the environment gives."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._token = next((os.environ[name] for name in TOKENS if os.environ.get(name)), "")

    def steps(self) -> int:
        """As its configuration says."""
        return self._status().steps_total

    def status(self) -> RunStatus:
        """The run's state, as far as the API tells it."""
        told = self._status()
        members = [
            Member(m.component, m.kind, m.alive, m.model_dump(exclude_none=True) if m.alive else {})
            for m in told.members
        ]
        recent = tuple(self.history(8))
        return RunStatus(
            run_id=told.run_id,
            phase=told.phase,
            reason=told.reason,
            latest=Latest(**told.latest.model_dump()) if told.latest else None,
            members=tuple(members),
            backlog=Backlog(**told.backlog.model_dump()),
            last=recent[-1] if recent else None,
            evaluations=tuple(EvaluationResult(**found.model_dump()) for found in told.evaluations),
            pending_evaluations=tuple(told.pending_evaluations),
            paused=told.paused,
            paused_by=told.paused_by,
            events=tuple(event.model_dump() for event in told.events[:1]),
            dead_letters={reason: ReasonTotals(**t.model_dump()) for reason, t in told.dead_letters.items()},
            recent=recent,
        )

    def history(self, last: int) -> Sequence[Row]:
        """From the API."""
        from services.control_plane import schemas

        answer = self._ask(f"/v1/history?last={last}")
        self._read(schemas.History, answer)
        rows: list[Row] = answer["steps"]
        return rows

    def close(self) -> None:
        """Every request has a connection of its own."""

    def _status(self) -> schemas.Status:
        from services.control_plane import schemas

        return self._read(schemas.Status, self._ask("/v1/status"))

    def _read(self, model: type[M], answer: Any) -> M:
        try:
            return model.model_validate(answer)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "no object"
            raise StreamError(f"{self._address} answers like another release's control plane ({where})") from None

    def _ask(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(self._address + path, headers=headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            self._refused(error)
        except (OSError, ValueError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise StreamError(f"no control plane answers at {self._address}: {reason}") from None

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        if error.code in (401, 403):
            raise AccessError(f"{self._address} asks for a token: give one of its tokens as {TOKENS[0]}") from None
        if to := error.headers.get("Location"):
            raise StreamError(f"{self._address} sends on to {to[:200]}: give the control plane's own address") from None
        try:
            detail = json.loads(error.read(MOST_BYTES))["detail"]
        except (OSError, ValueError, KeyError, TypeError):
            detail = f"{error.code} {error.reason}"
        raise StreamError(f"{self._address}: {detail}") from None


class Eyes:
    """Looks again and again; what was seen last stays where nobody answers."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._tracker: Tracker | None = None
        self.status: RunStatus | None = None
        self.verdict = Verdict("idle", "Starting.")
        self.trouble: StreamError | None = None  # why the last look saw nothing

    def look(self) -> None:
        """Asks where the run stands; the verdict says it where there is no answer."""
        try:
            tracker = self._tracker or Tracker(self._source.steps())
            status = self._source.status()
            missing = min(MOST_ROWS, tracker.missing(status))
            if missing:
                tracker.add(self._source.history(missing))
        except StreamError as error:
            self.trouble = error
            self.verdict = Verdict("idle" if self.status is None else "bad", str(error))
            return
        self.trouble = None
        self._tracker, self.status, self.verdict = tracker, status, verdict(status)

    def progress(self) -> Progress | None:
        """How far the run is; None before its first step."""
        if self.status is None or self.status.last is None or self._tracker is None:
            return None
        return self._tracker.progress(self.status)
