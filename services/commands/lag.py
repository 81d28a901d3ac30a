"""Commands that show and turn the lag dial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.commands.options import Overrides

if TYPE_CHECKING:
    from shared.config import Config
    from shared.control import ControlState

lag_app = typer.Typer(
    help="Show and set how many versions rollout servers lag behind, on purpose, while the run goes on.",
    no_args_is_help=True,
)
Run = Annotated[Path, typer.Argument(metavar="RUN_FOLDER|FILE", help="A run's folder, or its YAML file.")]
Server = Annotated[str | None, typer.Option("--server", metavar="ID", help="Of this rollout server alone.")]
BY = "trustbatch lag"


@lag_app.command("show")
def lag_show(run: Run, overrides: Overrides) -> None:
    """Show what is asked for, by whom, and what every living rollout server serves."""
    from rich.console import Console

    from services.lag import read_lag
    from services.lag_table import show

    with _dial(run, overrides) as (config, control):
        show(read_lag(config, control), Console(highlight=False, markup=False, emoji=False))


@lag_app.command("set")
def lag_set(
    run: Run,
    lag: Annotated[str, typer.Argument(metavar="LAG", help="8, uniform:0:16, choice:0,4*2,16, 0@0,8@100, ...")],
    overrides: Overrides,
    server: Server = None,
    dwell: Annotated[
        str | None, typer.Option(metavar="LENGTH", help="Draw again after so much: `8 versions` or `32 groups`.")
    ] = None,
    control_share: Annotated[
        float, typer.Option("--control", metavar="SHARE", help="Share of dwells, else of servers, at lag 0.")
    ] = 0.0,
) -> None:
    """Ask for another lag, from every server's next group on. It outlives restarts, until it is set again or cleared.

    \b
      8                      versions behind the newest
      uniform:0:16           a distribution: over servers, or with --dwell over stretches of each server
      choice:0,4*2,16        one of these, 4 twice as likely
      geometric:.25:16       0 with probability .25, else 1 with .25, ...; at most 16
      0@0,8@100,16@200       a schedule over optimizer steps; linear:0@0,16@200 in straight lines
    """  # noqa: D301 - the backspace keeps the lines as they are
    from services.lag import read_lag, set_lag, with_server
    from shared.config.lag import LagSetting, ServerLag

    with _dial(run, overrides) as (config, control):
        own: dict[str, Any] = {"lag": lag, "dwell": dwell, "control_share": control_share}
        if server is None:
            wanted, instead_of = _checked(LagSetting, own), None
        else:
            now = read_lag(config, control)
            wanted, instead_of = with_server(now.operators, server, _checked(ServerLag, own)), now.wish
        changed = set_lag(config, control, wanted, BY, instead_of)
        typer.echo(f"{config.run.id}: lag {wanted}" + ("" if changed else ", as before"))


@lag_app.command("clear")
def lag_clear(run: Run, overrides: Overrides, server: Server = None) -> None:
    """Ask for the configuration's lag again; with --server, for that server what all others are asked for."""
    from services.lag import clear_lag, read_lag, set_lag, with_server

    with _dial(run, overrides) as (config, control):
        if server is None:
            changed = clear_lag(config, control, BY)
        else:
            now = read_lag(config, control)
            changed = set_lag(config, control, with_server(now.operators, server, None), BY, now.wish)
        typer.echo(f"{config.run.id}: lag {read_lag(config, control).setting}" + ("" if changed else ", as before"))


@contextmanager
def _dial(run: Path, overrides: list[str]) -> Iterator[tuple[Config, ControlState]]:
    """The run's configuration and control state; says so where there is no Redis to ask."""
    from services.dead_letters import config_of
    from services.lag import LagRefusedError
    from shared.control import ControlState
    from shared.errors import AccessError, StreamError
    from shared.keys import Keys
    from shared.redis_client import connect

    config = config_of(run, overrides)
    try:
        yield config, ControlState(connect(config, 2.0), Keys(config.run.id))
    except (AccessError, LagRefusedError):
        raise
    except StreamError as error:
        raise StreamError(f"the lag of {config.run.id} cannot be read or set now: {error}") from None


def _checked(kind: Any, given: dict[str, Any]) -> Any:
    """A setting of what was given. Raises ConfigError, in the words of the command line."""
    from pydantic import ValidationError

    from shared.errors import ConfigError

    try:
        return kind.model_validate(given)
    except ValidationError as error:
        names = {"lag": "LAG", "dwell": "--dwell", "control_share": "--control"}
        first = error.errors(include_url=False)[0]
        key = names.get(str(first["loc"][0]), "") if first["loc"] else ""
        raise ConfigError(f"{key}: ".lstrip(": ") + first["msg"].removeprefix("Value error, ")) from None
