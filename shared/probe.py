"""Health probes beside the metrics: /livez and /readyz, answered from what the process says of itself.

Live: the process goes on. It has said something within `metrics.stalled_after_s`, and what it says has changed
within that time (or another part came of a version that it fetches, or went of one that it uploads), unless it says
that it waits: each of its waits ends by a deadline of its own, or is a pause or a drain that the operator asked for.
An outage of Redis is such a wait, so no probe asks Redis.
Ready: it serves a version that it has proven (rollout server), or has published one (learner).

    python -m shared.probe http://127.0.0.1:9400/readyz     # for images without curl; 0: yes, 1: no
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen
from wsgiref.simple_server import WSGIServer
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

WAITING = ("waiting for ", "paused", "draining")  # what a wait that ends by itself, or by the operator, begins with
ENDING = ("stopping", "failed")
ASK_S = 5.0


@dataclass(frozen=True)
class Standing:
    """What the probes answer."""

    live: bool
    ready: bool
    text: str  # the state, and what is wrong with it


STARTING = Standing(True, False, "starting")


def standing(status: Mapping[str, Any], silent_s: float, unchanged_s: float, stalled_after_s: float) -> Standing:
    """Judges a process by its own status.

    Args:
        status: of its heartbeat; `state` and `policy_version` count.
        silent_s: seconds since it last said anything, be it the same again.
        unchanged_s: seconds since what it says has changed.
        stalled_after_s: seconds of silence, or of the same work, that no live process needs.

    """
    state, version = str(status.get("state", "")), int(status.get("policy_version", -1))
    waits = state.startswith(WAITING)
    ready = version >= 0 and state not in ENDING
    if silent_s > stalled_after_s:
        return Standing(False, ready, f"stalled: silent for {silent_s:.0f} s, last said: {state}")
    if unchanged_s > stalled_after_s and not waits:
        return Standing(False, ready, f"stalled: {state} for {unchanged_s:.0f} s without progress")
    return Standing(True, ready, state if ready or version >= 0 else f"{state}; no version yet")


class Probes:
    """What answers the probes; until it is told whom to watch, the process is starting."""

    def __init__(self) -> None:
        self._look: Callable[[], Standing] = lambda: STARTING

    def watch(self, look: Callable[[], Standing]) -> None:
        """From now on, `look` answers; it is called from the endpoint's threads."""
        self._look = look

    def install(self, server: WSGIServer) -> None:
        """Answers /livez and /readyz of this server; every other path stays what it was."""
        others = server.get_app()
        assert others is not None
        server.set_app(self._app(others))

    def _app(self, others: WSGIApplication) -> WSGIApplication:
        def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path not in ("/livez", "/readyz"):
                return others(environ, start)
            now = self._look()
            good = now.live if path == "/livez" else now.live and now.ready
            start("200 OK" if good else "503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [now.text.encode() + b"\n"]

        return answer


def ask(url: str, timeout_s: float = ASK_S) -> tuple[bool, str]:
    """(yes or no, what was answered). Of https only that it answers is asked: it is this machine's own address."""
    try:
        with urlopen(url, timeout=timeout_s, context=_unverified(url)) as answer:
            return True, answer.read(1000).decode(errors="replace").strip()
    except HTTPError as error:
        return False, f"{error.code}: {error.read(1000).decode(errors='replace').strip()}"
    except (URLError, OSError, ValueError) as error:
        return False, f"{url}: {error}"


def _unverified(url: str) -> ssl.SSLContext | None:
    if not url.startswith("https:"):
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def main(arguments: Sequence[str]) -> int:
    """The command: 0 for yes, 1 for no, 2 for a wrong call."""
    if len(arguments) != 1 or not arguments[0].startswith(("http://", "https://")):
        print("usage: python -m shared.probe http://127.0.0.1:PORT/livez | .../readyz", file=sys.stderr)
        return 2
    good, text = ask(arguments[0])
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
