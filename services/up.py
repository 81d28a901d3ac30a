"""`trustbatch up` and `trustbatch report`: which run it is, and what is shown at its end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from services import run_folder
from services.facts import ask_facts
from services.history import read_history
from services.objections import of_learner
from services.outcome import Outcome, went_far
from services.report import PLOT, SUMMARY, write_report
from services.supervisor import Supervisor
from services.terminal import open_screen, summary_table
from shared.config import Config, load_config, parse_overrides
from shared.config.load import ENV_PREFIX
from shared.errors import ConfigError
from shared.process import StopFlag

_PLACE = ("run.id", "run.folder")


def run_up(file: Path | None, overrides: Sequence[str], name: str | None, resume: bool) -> int:
    """Runs everything on this machine; returns the exit code. Raises ConfigError before anything is started."""
    stop = StopFlag().install()
    console, errors = Console(), Console(stderr=True)
    config = load_config(file, overrides)
    if resume:
        config = run_folder.to_resume(config if name is None else run_folder.named(config, name), overrides)
    else:
        config = which_run(config, name, placed_by_hand(overrides))
    check_ports(config)
    objection = of_learner(config)
    if objection:
        raise ConfigError(objection)
    if not resume:
        run_folder.create(config)
    screen = open_screen(console)
    screen.say(f"run       {config.run.id} in {config.run.folder}" + (" (resumed)" if resume else ""))
    outcome = Supervisor(config, screen, stop, resumed=resume).run()
    _show_end(console, errors, config, outcome)
    return outcome.exit_code


def which_run(config: Config, name: str | None, by_hand: bool, now: datetime | None = None) -> Config:
    """The configuration with the new run's final name and folder.

    Args:
        config: as loaded.
        name: given by --name.
        by_hand: run.id or run.folder were given by --set or by the environment, and are meant literally.
        now: the time that a new run's name carries.

    Raises:
        ConfigError: a name that cannot be one.

    """
    if name is not None:
        return run_folder.named(config, name)
    if by_hand:
        return config
    return run_folder.stamped(config, now or datetime.now().astimezone())


def placed_by_hand(overrides: Sequence[str], environ: Mapping[str, str] = os.environ) -> bool:
    """True if run.id or run.folder are given outside the file."""
    given = {key for key, _ in parse_overrides(overrides)}
    variables = {
        name.removeprefix(ENV_PREFIX).lower().replace("__", ".") for name in environ if name[:12] == ENV_PREFIX
    }
    return any(key in given | variables for key in _PLACE)


def check_ports(config: Config) -> None:
    """Refuses ports that two processes of this machine would both listen on. Raises ConfigError."""
    port = config.metrics.port
    if port and config.rollout.servers:
        raise ConfigError(
            f"metrics.port is {port}, but the learner and every rollout server on this machine need one each: "
            "set metrics.port to 0, and each takes a free one, which the control plane shows"
        )
    if port and port == config.control_plane.port:
        raise ConfigError(
            f"metrics.port and control_plane.port are both {port}, on one machine: set metrics.port to 0 for a free one"
        )


def report_on(folder: Path) -> None:
    """Writes and shows the report of a run folder. Raises ConfigError where it is none."""
    if not (folder / run_folder.CONFIG).is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {run_folder.CONFIG}")
    config = load_config(folder / run_folder.CONFIG)
    summary = write_report(folder, config.run.id, ask_facts(config, timeout_s=2.0))
    console = Console()
    console.print(summary_table(summary))
    console.print(f"{folder / SUMMARY}\n{folder / PLOT}", highlight=False, soft_wrap=True)


def _show_end(console: Console, errors: Console, config: Config, outcome: Outcome) -> None:
    if outcome.summary is not None:
        console.print(summary_table(outcome.summary))
    if outcome.exit_code:
        errors.print(outcome.reason, style="red", highlight=False, markup=False, soft_wrap=True)
        far = went_far(read_history(config.run.folder))
        if far is not None:
            ess, step = far
            hint = f"Token ESS fell to {ess:.3g} in step {step}: the policy had left its data behind; look at it with:"
            look = f"  trustbatch replay {config.run.folder} --step {step}"
            errors.print(hint, look, sep="\n", highlight=False, markup=False, soft_wrap=True)
    console.print(f"run folder {config.run.folder}", highlight=False, soft_wrap=True)
