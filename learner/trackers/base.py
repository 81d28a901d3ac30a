"""What a tracker is, and which one a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from shared.config import Config
from shared.errors import ConfigError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@dataclass(frozen=True)
class Point:
    """The numbers of one step."""

    step: int
    at: float  # unix seconds
    values: dict[str, float]


class Tracker(Protocol):
    """One run in a tracker. Whatever it raises is told, and the same points come again."""

    @property
    def newest(self) -> int:
        """The newest step that it is known to have; 0 for none, or where it cannot tell."""

    def send(self, points: Sequence[Point]) -> None:
        """Takes points, steps ascending; once this returns they are where a killed process does not lose them."""

    def close(self) -> None:
        """Ends the connection."""


@dataclass(frozen=True)
class Place:
    """Which run of which tracker."""

    kind: str
    run_id: str
    project: str
    folder: Path
    url: str

    @property
    def text(self) -> str:
        """The same for as long as it is the same run there."""
        return " ".join((self.kind, self.url or str(self.folder), self.project, self.run_id))


Opener = Callable[[Place, int], Tracker]
"""Opens a run that was given everything up to a step."""


def place_of(config: Config) -> Place | None:
    """Where the numbers go; None for nowhere. Raises ConfigError where the package is not installed."""
    tracker = config.metrics.tracker
    if tracker.kind == "none":
        return None
    package = PACKAGES[tracker.kind]
    if find_spec(package) is None:
        raise ConfigError(
            f"metrics.tracker.kind is {tracker.kind}, which is not installed: pip install {package}, or set it to none"
        )
    folder = tracker.folder or config.run.folder / tracker.kind
    return Place(tracker.kind, config.run.id, tracker.project, folder, tracker.url)


def opener_of(kind: str) -> Opener:
    """Loads the tracker's package. Raises ImportError."""
    if kind == "tensorboard":
        from learner.trackers.tensorboard import TensorBoard

        return TensorBoard
    if kind == "wandb":
        from learner.trackers.wandb import Wandb

        return Wandb
    if kind == "mlflow":
        from learner.trackers.mlflow import Mlflow

        return Mlflow
    from learner.trackers.trackio import Trackio

    return Trackio
