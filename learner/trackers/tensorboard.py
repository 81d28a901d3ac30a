"""TensorBoard: event files in a folder."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.tensorboard import SummaryWriter

from learner.trackers.base import Place, Point


class TensorBoard:
    """Opened anew, it says from which step on what the folder already holds does not count: nothing is there twice."""

    newest = 0

    def __init__(self, place: Place, sent: int) -> None:
        folder = place.folder / place.project / place.run_id
        self._writer = SummaryWriter(str(folder), purge_step=sent + 1)

    def send(self, points: Sequence[Point]) -> None:
        """Writes and flushes."""
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name.replace(".", "/"), value, point.step, walltime=point.at)
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
