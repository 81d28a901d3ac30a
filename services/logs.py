"""Turns the last lines of a process's log into something that a person can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TAIL_BYTES = 64 * 1024
_HIDDEN = ("run", "component", "level", "timestamp", "event", "exception")


def tail(path: Path, lines: int = 15) -> list[str]:
    """The last lines of a log, JSON objects rendered as `12:30:01 error  what happened  key=value`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    rendered = [part for line in text.splitlines() if line.strip() for part in readable(line).splitlines()]
    return rendered[-lines:]


def readable(line: str) -> str:
    """One log line for a person; what is not a JSON object is returned as it is."""
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict) or "event" not in row:
        return line
    clock = str(row.get("timestamp", ""))[11:19]
    details = " ".join(f"{key}={_short(value)}" for key, value in row.items() if key not in _HIDDEN)
    head = " ".join(part for part in (clock, f"{row.get('level', ''):<7}", str(row["event"]), details) if part).strip()
    return f"{head}\n{row['exception']}" if row.get("exception") else head


def _short(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
