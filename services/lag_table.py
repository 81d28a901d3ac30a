"""What is asked of rollout servers and what they serve, as a table for the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from services.dead_letters import plain
from services.lag import Dialled


def show(dialled: Dialled, console: Console) -> None:
    """Prints the setting, who asked for it, and a line for every living server."""
    console.print(f"lag       {plain(str(dialled.setting))}", soft_wrap=True)
    console.print(f"asked by  {_who(dialled)}")
    console.print(f"max_lag   {dialled.max_lag}")
    if not dialled.servers:
        console.print("no rollout server is alive")
        return
    table = Table("server", "asked", "served", "version", "arm", box=None, header_style="bold", pad_edge=False)
    for name, values in sorted(dialled.servers.items()):
        numbers = (str(values.get(key, "")) for key in ("lag", "lag_served", "policy_version"))
        table.add_row(plain(name), *numbers, plain(str(values.get("arm", ""))))
    console.print(table)


def _who(dialled: Dialled) -> str:
    if not dialled.by:
        return "the configuration"
    at = "" if dialled.at is None else datetime.fromtimestamp(dialled.at, UTC).strftime(", %Y-%m-%d %H:%M:%S UTC")
    return plain(dialled.by) + at
