"""Weights & Biases: online, or offline for `wandb sync`, as WANDB_MODE says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb

from learner.trackers.base import Place, Point

QUIET: dict[str, Any] = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
"""Numbers go there, and nothing of the machine's files or the process's output."""


class Wandb:
    """One run by its id. It takes no step that is not above the last: nothing is there twice."""

    def __init__(self, place: Place, sent: int) -> None:
        place.folder.mkdir(parents=True, exist_ok=True)
        server = {"base_url": place.url} if place.url else {}
        self._run = wandb.init(
            project=place.project,
            id=place.run_id,
            name=place.run_id,
            dir=str(place.folder),
            resume="allow",
            settings=wandb.Settings(**QUIET, **server),
        )
        self.newest = self._run.step - 1 if self._run.resumed else 0

    def send(self, points: Sequence[Point]) -> None:
        """Into the run's own file, which goes on to the server, or waits for `wandb sync`."""
        for point in points:
            self._run.log({**point.values, "_timestamp": point.at}, step=point.step, commit=True)

    def close(self) -> None:
        """Waits until it is there."""
        self._run.finish()
