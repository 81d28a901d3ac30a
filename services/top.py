"""`trustbatch top`: the dashboard's verdict and numbers in a terminal, of a run that anybody runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from services.dead_letters import config_of
from services.eyes import Eyes, HttpSource, RedisSource, Source
from services.terminal import View, draw, open_screen
from services.watch import member_line

EVERY_S = 1.0


def show(run: str, overrides: Sequence[str], once: bool, as_json: bool) -> None:
    """Shows a run until it is interrupted, or once. Raises StreamError where there is nothing to show."""
    source = source_of(run, overrides)
    console = Console(highlight=False, markup=False, emoji=False)
    screen = open_screen(console)
    eyes = Eyes(source)
    try:
        while True:
            eyes.look()
            if eyes.trouble is not None and (once or eyes.status is None):
                raise eyes.trouble
            if as_json:
                print(json.dumps(told(eyes)), flush=True)
            elif once:
                console.print(draw(view(eyes)))
            else:
                screen.show(view(eyes))
            if once:
                return
            time.sleep(EVERY_S)
    except KeyboardInterrupt:
        return
    finally:
        screen.close()
        source.close()


def source_of(run: str, overrides: Sequence[str]) -> Source:
    """A control plane by its address, else the Redis that a run folder or a YAML file names. Raises ConfigError."""
    return HttpSource(run) if run.startswith(("http://", "https://")) else RedisSource(config_of(Path(run), overrides))


def view(eyes: Eyes) -> View:
    """The newest look, as the terminal draws it."""
    members = eyes.status.members if eyes.status else ()
    return View(
        run_id=eyes.status.run_id if eyes.status else "",
        verdict=eyes.verdict,
        processes=[member_line(member.component, member) for member in members],
        progress=eyes.progress(),
        dashboard=next((str(m.values["address"]) for m in members if m.values.get("address")), ""),
        metrics=(),
        elapsed_s=None,
    )


def told(eyes: Eyes) -> dict[str, Any]:
    """The newest look as JSON, without the histories behind its curves."""
    progress = eyes.progress()
    numbers = asdict(progress) if progress else {}
    numbers = {name: value for name, value in numbers.items() if not isinstance(value, tuple)}
    status = eyes.status
    phase = {"run_id": status.run_id, "phase": status.phase} if status else {}
    return {**phase, "verdict": asdict(eyes.verdict), "numbers": numbers}
