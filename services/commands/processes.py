"""Commands that run the processes of a run: all of them, or one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from services.commands.options import File, Overrides, Required, become, read_config

Again = Annotated[
    bool,
    typer.Option(
        "--again",
        help="Leave with 75, not 0, where stopped before the run is over: for those who start again what failed.",
    ),
]


def up(
    *,
    config: File = None,
    overrides: Overrides,
    rollouts: Annotated[int | None, typer.Option(metavar="N", help="Rollout servers on this machine.")] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the run and of its folder; default: run.id and the time."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run of this name, else the newest, as it was started.")
    ] = False,
) -> None:
    """Run the whole loop on this machine, from start to summary.

    Starts Redis, the control plane, the learner and the rollout servers, each as a process of its own.
    Shows progress until the run has finished, then leaves summary, plot and trained model in the run folder.
    Ctrl-C stops every process within ten seconds; --resume goes on from the last checkpoint, with the settings that
    the run was started with and what --set and the environment give now. Another terminal can add a rollout server:

    \b
      trustbatch rollout --config RUN_FOLDER/config.yaml --server-id r9
    """  # noqa: D301 - the backspace keeps the line as it is
    from services.up import run_up

    if rollouts is not None:
        overrides = [*overrides, f"rollout.servers={rollouts}"]
    raise typer.Exit(run_up(config, overrides, name=name, resume=resume))


def rollout(
    *,
    config: Required,
    overrides: Overrides,
    server_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Unique among the run's rollout servers; default: this host's name."),
    ] = None,
    again: Again = False,
) -> None:
    """Run one rollout server.

    It joins the run that the configuration names, and draws groups until the run is over.
    """
    _replace_by("rollout", config, overrides, "--server-id", server_id or socket.gethostname(), *_again(again))


def learner(*, config: Required, overrides: Overrides, again: Again = False) -> None:
    """Run the learner.

    It goes on from the newest checkpoint in the run folder, if there is one.
    """
    _replace_by("learner", config, overrides, *_again(again))


def control_plane(*, config: Required, overrides: Overrides) -> None:
    """Run the control plane.

    It serves the HTTP API, metrics and the page that shows the run.
    """
    _replace_by("services.control_plane", config, overrides)


def prepare(
    *,
    config: Required,
    overrides: Overrides,
    await_s: Annotated[
        float | None,
        typer.Option("--await", metavar="SECONDS", min=0, help="Make nothing; wait this long for who makes it."),
    ] = None,
) -> None:
    """Make what a run needs before its processes start: the small model, if model.tiny asks for one.

    Does nothing where it is there already. `trustbatch up` does this by itself.
    """
    from services import prepare as preparation

    settings = read_config(config, overrides)
    done = preparation.prepare(settings) if await_s is None else preparation.await_prepared(settings, await_s)
    typer.echo(done)


def load(context: typer.Context) -> None:
    """Put load on a run without an engine: for tests and capacity planning only.

    It joins like rollout servers do and appends made-up groups; `trustbatch load --help` lists its options.
    """
    become("services.load", *context.args)


def _again(wanted: bool) -> list[str]:
    return ["--again"] if wanted else []


def _replace_by(module: str, file: Path, overrides: list[str], *more: str) -> NoReturn:
    """Becomes the module's process: same pid, same signals. A configuration that cannot work is refused before."""
    read_config(file, overrides)
    arguments = ["--config", str(file)]
    for override in overrides:
        arguments += ["--set", override]
    become(module, *arguments, *more)
