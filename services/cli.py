"""The command line: its commands in the order of `--help`, and how its errors end."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from services.commands import bench, configuration, inspection, lag, letters, processes, store
from services.commands.options import PASSED_ON

HELP = """Asynchronous off-policy RL post-training for language models.

Rollout servers draw groups of completions and append them, with the log-probability of every token, to a Redis
stream. The learner trains on whatever is there, fresh or stale, and lets the effective sample size (ESS) of the
batch decide how far to trust it. The control plane shows how that goes.

\b
A first run on this machine:
  trustbatch up --config deploy/configs/demo.yaml

Settings come from one YAML file, then from the environment (TRUSTBATCH__LEARNER__STEPS=200), then from --set
(learner.steps=200); the later the stronger.
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"trustbatch {version('trustbatch')}")
        raise typer.Exit


app = typer.Typer(
    help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
)
app.command()(processes.up)
app.command()(processes.rollout)
app.command()(processes.learner)
app.command()(inspection.objectives)
app.command()(inspection.metrics)
app.command("control-plane")(processes.control_plane)
app.command()(processes.prepare)
app.command(context_settings=PASSED_ON)(processes.load)
app.command()(configuration.doctor)
app.command()(inspection.top)
app.command()(inspection.report)
app.command()(inspection.record)
app.command()(inspection.replay)
app.add_typer(bench.bench_app, name="bench")
app.add_typer(configuration.config_app, name="config")
app.add_typer(lag.lag_app, name="lag")
app.add_typer(letters.letters_app, name="dead-letters")
app.add_typer(store.store_app, name="store")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and leave.")
    ] = False,
) -> None:
    """Nothing of its own: `app` has the help."""


def main() -> NoReturn:
    """The console script: errors of ours are one plain message; 2 for the configuration, 1 for anything else."""
    from shared.errors import ConfigError, TrustbatchError

    try:
        app(prog_name="trustbatch")
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except TrustbatchError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
