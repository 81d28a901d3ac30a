"""Published versions over HTTP, to read: for rollout servers that share no disk with the learner.

    GET /index.json                     {"versions": [3, 4, 5]}
    GET /v00000005/manifest.json        and every file that it lists, with Range
    GET /healthz                        open; everything else needs a token of the control plane that may look

Nothing else of the folder can be reached: names come from versions and their manifests, never from paths.
"""

from __future__ import annotations

import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from services.control_plane.access import tokens_of
from services.control_plane.guard import Guard
from shared.config import Config
from shared.errors import StoreError
from shared.manifest import MANIFEST
from shared.store import PolicyStore
from shared.store.remote import INDEX

REQUESTS_PER_MINUTE = 60_000  # of one client; a download is one request for each of its parts
NO_STORE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


def create_app(config: Config, store: PolicyStore) -> Guard:
    """The application over one store on a disk. Raises ConfigError where nobody could be let in."""

    def index(request: Request) -> Response:
        return JSONResponse({"versions": store.versions()}, headers=NO_STORE)

    async def file(request: Request) -> Response:
        path = await run_in_threadpool(listed, store, request.path_params["folder"], request.path_params["name"])
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="application/octet-stream", headers=NO_STORE)

    def healthz(request: Request) -> Response:
        return PlainTextResponse("ok")

    routes = [Route("/healthz", healthz), Route(f"/{INDEX}", index), Route("/{folder}/{name}", file)]
    return Guard(Starlette(routes=routes), tokens_of(config), REQUESTS_PER_MINUTE)


def listed(store: PolicyStore, folder: str, name: str) -> Path | None:
    """A file that a published version's manifest lists, or the manifest; None for anything else."""
    match = re.fullmatch(r"v([0-9]{8,18})", folder)
    if match is None or store.folder(int(match[1])).name != folder:
        return None
    try:
        manifest = store.manifest(int(match[1]))
    except StoreError:
        return None
    path = store.folder(int(match[1])) / name
    known = name == MANIFEST or name in {item.stored.name for item in manifest.files}
    return path if known and path.is_file() and not path.is_symlink() else None


def serve(config: Config, host: str, port: int) -> None:
    """Serves until a signal ends it. Raises ConfigError."""
    import uvicorn

    from services.control_plane.access import tls_settings
    from services.control_plane.guard import MAX_HEADER_BYTES
    from services.listening import address_of, listen
    from shared.config.access import is_loopback
    from shared.errors import ConfigError
    from shared.process import StopFlag
    from shared.store import open_store
    from shared.store.mirror import MirroredStore

    store = open_store(config)
    if isinstance(store, MirroredStore):
        raise ConfigError(f"store.url is {config.store.url}: rollout servers can be given that address themselves")
    if config.control_plane.auth == "none" and not is_loopback(host):
        raise ConfigError(f"control_plane.auth is none, so --host must be of this machine alone, not {host}")
    app, encrypted = create_app(config, store), tls_settings(config)
    listening = listen(host, port, "store serve")
    scheme = "https" if encrypted else "http"
    print(f"policy store {store.root} on {address_of(host, listening.getsockname()[1], scheme)}", flush=True)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=1,
        http="h11",  # the parser that bounds headers
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        limit_concurrency=256,
        proxy_headers=False,
        server_header=False,
        **encrypted,
    )
    stop = StopFlag().install()  # uvicorn takes the signals over while it serves, and gives them back to this one
    server = uvicorn.Server(settings)
    stop.on_stop(lambda: setattr(server, "should_exit", True))
    server.should_exit = bool(stop)
    try:
        server.run(sockets=[listening])
    finally:
        listening.close()
