"""The page: a bounded list of files, read once, that load nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("page")
SCRIPTS = (
    "app",
    "charts",
    "groups",
    "heatmap",
    "live",
    "people",
    "plot",
    "servers",
    "store",
    "summary",
    "text",
    "uplot",
)
NAMES = ("icon.svg", "style.css", "parts.css", "uplot.css", *(f"{name}.js" for name in SCRIPTS))
PATHS = {"/": "index.html"} | {f"/page/{name}": name for name in NAMES}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",  # asked for again with its ETag: 304 while it is the same
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class File:
    """One file of the page, as it is sent."""

    content: bytes
    headers: Mapping[str, str]


def add_page(app: FastAPI) -> None:
    """The routes: the page at `/`, what it is made of below `/page/`."""
    files = {path: _read(FOLDER / name) for path, name in PATHS.items()}

    def send(request: Request) -> Response:
        file = files[request.scope["route"].path]
        if file.headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=dict(file.headers))
        return Response(file.content, headers=dict(file.headers))

    for path in files:
        app.get(path, include_in_schema=False)(send)


def _read(path: Path) -> File:
    content = path.read_bytes()
    tag = f'"{sha256(content).hexdigest()[:32]}"'
    return File(content, HEADERS | {"ETag": tag, "Content-Type": KINDS[path.suffix]})
