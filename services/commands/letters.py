"""Commands about dead letters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.commands.options import Overrides

letters_app = typer.Typer(help="Look at entries that could not be trained on, and put them back.", no_args_is_help=True)
Run = Annotated[Path, typer.Argument(metavar="RUN_FOLDER|FILE", help="A run's folder, or its YAML file.")]


@letters_app.command("list")
def letters_list(run: Run, overrides: Overrides) -> None:
    """Count them by reason, since the run began, and list those that are kept."""
    from rich.console import Console

    from services.dead_letters import config_of, show_list

    show_list(config_of(run, overrides), Console())


@letters_app.command("show")
def letters_show(
    run: Run,
    letter_id: Annotated[str, typer.Argument(metavar="ID")],
    overrides: Overrides,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Writes the payload, byte for byte.")] = None,
) -> None:
    """Show one: what is wrong with it and what is in it, decoded where it can be."""
    from rich.console import Console

    from services.dead_letters import config_of, show_one

    show_one(config_of(run, overrides), letter_id, out, Console())


@letters_app.command("requeue")
def letters_requeue(
    run: Run,
    overrides: Overrides,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", show_default=False)] = None,
    reason: Annotated[str | None, typer.Option(metavar="REASON", help="All that are kept for this reason.")] = None,
) -> None:
    """Put payloads back into the stream, as their servers had appended them, e.g. after mending a setting.

    One is refused where its prompt has been trained on, is in the stream or is being drawn again. What the learner
    still cannot train on comes back to the dead letters. Exits with 1 where one was refused.
    """
    from rich.console import Console

    from services.dead_letters import config_of, requeue_some
    from shared.errors import ConfigError

    if bool(ids) == (reason is not None):
        raise ConfigError("give either IDs or --reason; `trustbatch dead-letters list` shows both")
    if not requeue_some(config_of(run, overrides), ids or [], reason, Console()):
        raise typer.Exit(1)
