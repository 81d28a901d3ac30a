"""The command line. Commands import what they need when they run, so `--help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from shared.config import Config

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

app = typer.Typer(
    help=HELP, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False
)
config_app = typer.Typer(help="Show, check and describe the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
letters_app = typer.Typer(help="Look at entries that could not be trained on, and put them back.", no_args_is_help=True)
app.add_typer(letters_app, name="dead-letters")

File = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file; ready-made ones are in deploy/configs/."),
]
Required = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="YAML file; a run's own is RUN_FOLDER/config.yaml.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN_FOLDER|FILE", help="A run's folder, or its YAML file.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Overrides one key, e.g. learner.steps=200. May be repeated.",
        default_factory=list,
        show_default=False,
    ),
]


@app.command()
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


@app.command()
def rollout(
    *,
    config: Required,
    overrides: Overrides,
    server_id: Annotated[str, typer.Option(metavar="ID", help="Unique among the run's rollout servers.")] = "r0",
) -> None:
    """Run one rollout server.

    It joins the run that the configuration names, and draws groups until the run is over.
    """
    _replace_by("rollout", config, overrides, "--server-id", server_id)


@app.command()
def learner(*, config: Required, overrides: Overrides) -> None:
    """Run the learner.

    It goes on from the newest checkpoint in the run folder, if there is one.
    """
    _replace_by("learner", config, overrides)


@app.command()
def objectives(
    *,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the two KL estimators against the ratio instead.")
    ] = None,
) -> None:
    """List the objectives that the learner knows, with equation, knobs and source.

    One word of the configuration chooses: learner.objective.name.
    """
    _become("learner.objectives", *(["--figure", str(figure)] if figure is not None else []))


@app.command("control-plane")
def control_plane(*, config: Required, overrides: Overrides) -> None:
    """Run the control plane.

    It serves the HTTP API, metrics and the page that shows the run.
    """
    _replace_by("services.control_plane", config, overrides)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def load(context: typer.Context) -> None:
    """Put load on a run without an engine: for tests and capacity planning only.

    It joins like rollout servers do and appends made-up groups; `trustbatch load --help` lists its options.
    """
    os.execv(sys.executable, [sys.executable, "-m", "services.load", *context.args])


@app.command()
def doctor(*, config: File = None, overrides: Overrides) -> None:
    """Check this machine and this configuration.

    One line each: what is installed, which engine and device will be used, which Redis; with the remedy.
    """
    from services.doctor import examine, show

    raise typer.Exit(show(examine(_load(config, overrides))))


@app.command()
def report(folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER")]) -> None:
    """Summarize and plot a run.

    Writes summary.json and plot.png into the run folder, whether the run is finished or not.
    """
    from services.up import report_on

    report_on(folder)


@app.command()
def record(
    *,
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER")],
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Keep at most this much, e.g. 1GiB, from the next batch on.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Record nothing more; what is there stays.")] = False,
) -> None:
    """Show the optimizer steps that a run has recorded, or bound them while it runs.

    The learner keeps its last steps exactly as they were: groups, log-probs, ESS, what became of them. Those that
    were skipped as not finite are kept longest. learner.record_bytes is the bound that a run starts with.
    """
    bound = ["--max-bytes", max_bytes] if max_bytes is not None else []
    _become("learner.recorded", str(folder), *bound, *["--off"] * off)


@app.command()
def replay(
    *,
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER")],
    objective: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="Of an objective, or all. May be repeated.", default_factory=list, show_default=False
        ),
    ],
    set_knob: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME:]KNOB=VALUE",
            help="Sets a knob of it. May be repeated.",
            default_factory=list,
            show_default=False,
        ),
    ],
    steps: Annotated[str, typer.Option(metavar="A..B", help="Which steps, both ends included.")] = "..",
    step: Annotated[int | None, typer.Option(metavar="N", help="One step alone.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Weights: newest, a checkpoint, a published version or a Hugging Face folder."
        ),
    ] = None,
    abandoned: Annotated[bool, typer.Option("--abandoned", help="Of steps that a restore left behind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers, the same bytes every time.")] = False,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the weight of every token against its ratio.")
    ] = None,
) -> None:
    """Show what any objective would have done with a run's recorded steps.

    Without --checkpoint from the log-probs that the learner had: the trained objective gives the recorded loss and
    ESS bit for bit. With it from those of other weights, gradients compared.
    """
    if step is not None and steps != "..":
        raise typer.BadParameter("give --step or --steps, not both")
    arguments = ["--steps", steps if step is None else str(step)]
    for name, values in (("--objective", objective), ("--set-knob", set_knob)):
        arguments += [part for value in values for part in (name, value)]
    arguments += ["--checkpoint", checkpoint] if checkpoint is not None else []
    arguments += ["--figure", str(figure)] if figure is not None else []
    _become("learner.replay", str(folder), *arguments, *["--abandoned"] * abandoned, *["--json"] * as_json)


@config_app.command("show")
def config_show(*, config: File = None, overrides: Overrides) -> None:
    """Print the resolved configuration as YAML: file, environment and --set merged, defaults filled in."""
    from shared.config.load import dump_config

    typer.echo(dump_config(_load(config, overrides)), nl=False)


@config_app.command("validate")
def config_validate(file: Annotated[Path, typer.Argument(metavar="FILE")], overrides: Overrides) -> None:
    """Check a file; name every key that cannot work, what was given and what is allowed."""
    from services.objections import of_learner
    from shared.errors import ConfigError

    problem = of_learner(_load(file, overrides))
    if problem:
        raise ConfigError(f"{file}: {problem}")
    typer.echo(f"{file}: valid")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration: every key, its bounds, its default and its meaning."""
    import json

    from shared.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


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


def _load(file: Path | None, overrides: list[str]) -> Config:
    from shared.config import load_config

    return load_config(file, overrides)


def _replace_by(module: str, file: Path, overrides: list[str], *more: str) -> NoReturn:
    """Becomes the module's process: same pid, same signals. A configuration that cannot work is refused before."""
    _load(file, overrides)
    arguments = ["--config", str(file)]
    for override in overrides:
        arguments += ["--set", override]
    _become(module, *arguments, *more)


def _become(module: str, *arguments: str) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


if __name__ == "__main__":
    main()
