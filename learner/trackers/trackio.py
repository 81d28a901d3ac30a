"""trackio: a database in a folder, or a Space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from learner.trackers.base import Place, Point


class Trackio:
    """One run by its name; opened for each hand-over, since only its end waits until the points are there."""

    newest = 0

    def __init__(self, place: Place, sent: int) -> None:
        if not place.url:
            place.folder.mkdir(parents=True, exist_ok=True)
            os.environ["TRACKIO_DIR"] = str(place.folder.absolute())  # read when the package is loaded
        self._place = place

    def send(self, points: Sequence[Point]) -> None:
        """Hands over and waits for the end."""
        import trackio

        place: Any = {"space_id": self._place.url} if self._place.url else {}
        run = trackio.init(
            project=self._place.project,
            name=self._place.run_id,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
            **place,
        )
        for point in points:
            run.log(point.values, step=point.step)
        trackio.finish()

    def close(self) -> None:
        """Nothing is open."""
