"""What every request meets before any route: the host it is for, how often, how much, and who asks.

    the page, liveness, readiness    everybody (they show nothing of the run)
    every other GET              a token that may look
    everything else              a token that may operate

A route that is added is closed until it is listed here.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.control_plane.access import Role, Tokens
from services.control_plane.page import PATHS
from services.control_plane.problems import problem
from shared.config.access import is_loopback

OPEN = (*PATHS, "/healthz", "/readyz")
UNLIMITED = (*(path for path in PATHS if path != "/"), "/healthz")  # one look at the page asks for every file
READS = ("GET", "HEAD", "OPTIONS")
MAX_BODY_BYTES = 16 * 1024  # a lag setting; no other route takes one
MAX_HEADER_BYTES = 16 * 1024
MAX_CLIENTS = 4096  # remembered at once; the one that was silent longest is forgotten
BURST = 10  # a tenth of a minute's requests may come at once


class Buckets:
    """Token buckets, one for each client: `per_minute` requests a minute, a tenth of them at once."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_minute / 60
        self._most = per_minute / BURST
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> requests left, at what time

    def take(self, client: str) -> float:
        """Takes one request; 0.0 if the client had one left, else seconds until it has."""
        now = self._clock()
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[client] = (left - allowed, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """Pure ASGI middleware. Leaves the role of who asks in `scope["role"]`."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None, per_minute: int) -> None:
        self._app = app
        self._tokens = tokens
        self._buckets = Buckets(per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it with what is wrong with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["role"] = Role.OPERATE if self._tokens is None else self._tokens.role(headers.get("authorization", ""))
        refused = None
        if scope["path"] not in UNLIMITED:
            refused = self._rate(scope) or self._host(headers)
        refused = refused or _size(scope, headers) or _role(scope, headers)
        await (refused or self._app)(scope, receive, send)

    def _rate(self, scope: Scope) -> Response | None:
        address = scope["client"][0] if scope.get("client") else ""
        who = "probe " * (scope["path"] == "/readyz") + _network(address)  # nobody's other requests starve the probe
        seconds = self._buckets.take(who)
        if not seconds:
            return None
        after = {"Retry-After": str(math.ceil(seconds))}
        return problem(429, "too many requests from one address (control_plane.requests_per_minute)", after)

    def _host(self, headers: Headers) -> Response | None:
        """Without tokens, a name that somebody else points at this machine must not make their page one of ours."""
        host = headers.get("host", "").rpartition("@")[2]
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if self._tokens is not None or is_loopback(name):
            return None
        return problem(403, "control_plane.auth is none: open it as 127.0.0.1 or localhost, no other name is answered")


def _size(scope: Scope, headers: Headers) -> Response | None:
    if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEADER_BYTES:
        return problem(431, f"at most {MAX_HEADER_BYTES:,} bytes of headers are read", {"Connection": "close"})
    if scope["method"] == "PUT" and "transfer-encoding" in headers:
        return problem(411, "a body is read whose length is said: send it with Content-Length", {"Connection": "close"})
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= MAX_BODY_BYTES:
        return None
    text = f"a body of at most {MAX_BODY_BYTES:,} bytes is read"
    return problem(413, text, {"Connection": "close"})


def _role(scope: Scope, headers: Headers) -> Response | None:
    path, reads = scope["path"], scope["method"] in READS
    needed = Role.STRANGER if reads and path in OPEN else Role.READ if reads else Role.OPERATE
    if scope["role"] >= needed:
        return None
    if scope["role"] == Role.READ:
        challenge = 'Bearer realm="trustbatch", error="insufficient_scope"'
        text = f"{scope['method']} {path} changes the run: it needs the token that may operate"
        return problem(403, text, {"WWW-Authenticate": challenge})
    wrong = ', error="invalid_token"' if "authorization" in headers else ""
    text = "a token is needed: send it as `Authorization: Bearer <token>`" + "; this one is not known" * bool(wrong)
    return problem(401, text, {"WWW-Authenticate": f'Bearer realm="trustbatch"{wrong}'})


def _network(address: str) -> str:
    """Who counts as one client: an IPv4 address, or the /64 that a single IPv6 host has for itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
