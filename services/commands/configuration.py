"""Commands that check and describe a configuration, and the machine that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.commands.options import File, Overrides, read_config

config_app = typer.Typer(help="Show, check and describe the configuration.", no_args_is_help=True)


def doctor(*, config: File = None, overrides: Overrides) -> None:
    """Check this machine and this configuration.

    One line each: what is installed, which engine and device will be used, which Redis; with the remedy.
    """
    from services.doctor import examine, show

    raise typer.Exit(show(examine(read_config(config, overrides))))


@config_app.command("show")
def config_show(*, config: File = None, overrides: Overrides) -> None:
    """Print the resolved configuration as YAML: file, environment and --set merged, defaults filled in."""
    from shared.config.load import dump_config

    typer.echo(dump_config(read_config(config, overrides)), nl=False)


@config_app.command("validate")
def config_validate(file: Annotated[Path, typer.Argument(metavar="FILE")], overrides: Overrides) -> None:
    """Check a file; name every key that cannot work, what was given and what is allowed."""
    from services.objections import of_learner
    from shared.errors import ConfigError

    problem = of_learner(read_config(file, overrides))
    if problem:
        raise ConfigError(f"{file}: {problem}")
    typer.echo(f"{file}: valid")


@config_app.command("diff")
def config_diff(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="For example RUN_FOLDER/config.yaml.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER")],
) -> None:
    """Say what differs between two files, and which processes have to start again for it.

    Every process reads its configuration at its start; a living run changes only where one is started again.
    """
    from shared.config.diff import ORDER, changes

    found = changes(read_config(before, []), read_config(after, []))
    for change in found:
        restarts = ", ".join(change.restarts) or "nothing that runs"
        other = "; belongs to another run: give it another run.id" if change.another_run else ""
        typer.echo(f"{change.key}: {change.before} -> {change.after}  (read by {restarts}{other})")
    again = [name for name in ORDER if any(name in change.restarts for change in found)]
    typer.echo(f"start again: {', '.join(again)}" if again else "nothing has to start again")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration: every key, its bounds, its default and its meaning."""
    import json

    from shared.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))
