"""User and password of an address: kept apart from it, since addresses are shown, stored and logged."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit


def without_credentials(section: dict[str, Any]) -> dict[str, Any]:
    """The redis section with what its url says of user and password moved to `username` and `password`.

    Raises:
        ValueError: the url cannot be taken apart, or both say something different; never shows a secret.

    """
    url = section.get("url")
    if not isinstance(url, str):
        return section
    bare, found = _split(url)
    for name, value in found.items():
        if section.get(name) not in (None, value):
            raise ValueError(f"redis.url holds a {name}, and redis.{name} is another one: give only one of them")
    return {**section, "url": bare, **found}


def holds_credentials(url: str) -> bool:
    """True where an address names a user or a password, or cannot be taken apart."""
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:
        return True


def _split(url: str) -> tuple[str, dict[str, str]]:
    """("redis://ann:pw@host/0") -> ("redis://host/0", {"username": "ann", "password": "pw"})."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_UNREADABLE) from None
    before, _, host = parts.netloc.rpartition("@")
    user, _, password = before.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    found = {"username": unquote(user), "password": unquote(password)}
    found.update((name, value) for name, value in query if name in found)
    kept = [(name, value) for name, value in query if name not in found]
    rest = f"?{urlencode(kept)}" if kept else ""
    bare = f"{parts.scheme}://{host}{parts.path}{rest}" if before or len(kept) < len(query) else url
    if "@" in bare and parts.scheme != "unix":  # a password with / or ? in it ends the host too early
        raise ValueError(_UNREADABLE)
    return bare, {name: value for name, value in found.items() if value}


_UNREADABLE = (
    "redis.url cannot be taken apart: write its user and password with %-escapes, or give them as redis.username "
    "and redis.password"
)
