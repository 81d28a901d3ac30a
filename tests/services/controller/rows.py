"""Step records as far as the controller looks, from what a test wants to say."""

from __future__ import annotations

from typing import Any


def row(step: int, ess: float, lag: int = 0, queue: int = 0, **changes: Any) -> dict[str, Any]:
    """A step whose tokens are all lag + queue versions stale, no token standing out."""
    record = {
        "step": step,
        "policy_version": step - 1,
        "at": 10.0 * step,
        "tokens": 2048,
        "trajectories": 256,
        "token_ess": ess,
        "largest_weight_share": 0.001,
        "top_1_percent_mass": 0.02,
        "lag_mean": float(lag),
        "lag_max": lag,
        "flight_mean": 0.0,
        "flight_max": 0,
        "queue_mean": float(queue),
        "queue_max": queue,
        "skipped": "",
    }
    return {**record, **changes}
