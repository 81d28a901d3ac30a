"""MLflow: a tracking server, or its own database in a folder."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from learner.trackers.base import Place, Point

AT_ONCE = 1000  # metrics in one call: what MLflow takes
TAG = "trustbatch.run"
STEP = "step"  # the last of each point's numbers: with it, the point is there


class Mlflow:
    """One run, found again by its tag."""

    def __init__(self, place: Place, sent: int) -> None:
        if not place.url:
            place.folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=place.url or f"sqlite:///{place.folder.absolute()}/mlflow.db")
        run = self._found(place)
        self._run_id = run.info.run_id
        self.newest = int(run.data.metrics.get(STEP, 0))

    def send(self, points: Sequence[Point]) -> None:
        """Each call comes back when the server, or the folder, has it."""
        for point in points:
            at = round(1000 * point.at)
            numbers = point.values | {STEP: float(point.step)}
            metrics = [Metric(name, value, at, point.step) for name, value in numbers.items()]
            for start in range(0, len(metrics), AT_ONCE):
                self._client.log_batch(self._run_id, metrics=metrics[start : start + AT_ONCE])

    def close(self) -> None:
        """The run goes on at the next start."""

    def _found(self, place: Place) -> Run:
        experiment = self._client.get_experiment_by_name(place.project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(place.project)
        runs = self._client.search_runs([number], filter_string=f"tags.`{TAG}` = '{place.run_id}'", max_results=1)
        if runs:
            return runs[0]
        return self._client.create_run(number, run_name=place.run_id, tags={TAG: place.run_id})
