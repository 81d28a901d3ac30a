"""Commands that show what a run did, and what objectives make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.commands.options import become


def objectives(
    *,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the two KL estimators against the ratio instead.")
    ] = None,
) -> None:
    """List the objectives that the learner knows, with equation, knobs and source.

    One word of the configuration chooses: learner.objective.name.
    """
    become("learner.objectives", *(["--figure", str(figure)] if figure is not None else []))


def metrics() -> None:
    """List every metric of every process, with unit, labels and meaning."""
    become("shared.metrics")


def report(folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER")]) -> None:
    """Summarize and plot a run.

    Writes summary.json and plot.png into the run folder, whether the run is finished or not.
    """
    from services.up import report_on

    report_on(folder)


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
    become("learner.recorded", str(folder), *bound, *["--off"] * off)


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
    become("learner.replay", str(folder), *arguments, *["--abandoned"] * abandoned, *["--json"] * as_json)
