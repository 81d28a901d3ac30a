"""What several commands take, and how one becomes another process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from shared.config import Config

File = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file; ready-made ones are in deploy/configs/."),
]
Required = Annotated[
    Path, typer.Option("--config", "-c", metavar="FILE", help="YAML file; a run's own is RUN_FOLDER/config.yaml.")
]
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


PASSED_ON: dict[str, object] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Of a command all of whose options are for the process that it becomes."""


def read_config(file: Path | None, overrides: list[str]) -> Config:
    """The configuration as file, environment and --set give it."""
    from shared.config import load_config

    return load_config(file, overrides)


def become(module: str, *arguments: str) -> NoReturn:
    """Becomes the module's process: same pid, same signals."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
