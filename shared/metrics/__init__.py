"""Prometheus metrics: every name, type, unit and meaning in `table.py`, one class for each process, one endpoint.

table.py           what there is; deploy/docs/metrics.md is made from it
learner.py         what the learner sets, from the record of every step
rollout.py         what a rollout server sets
control_plane.py   what the control plane sets
made.py            from the table to a registry
endpoint.py        the address to scrape
page.py            the tables of deploy/docs/metrics.md

Each process has a registry of its own. A number on the dashboard leads to the table, and from there, by its name, to
the one function that sets it.
"""

from shared.metrics.control_plane import ControlPlaneMetrics
from shared.metrics.endpoint import serve
from shared.metrics.learner import LearnerMetrics
from shared.metrics.rollout import RolloutMetrics
from shared.metrics.table import STEP_TEXTS

__all__ = ["STEP_TEXTS", "ControlPlaneMetrics", "LearnerMetrics", "RolloutMetrics", "serve"]
