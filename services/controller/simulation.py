"""A run small enough to be simulated: servers, credit, queue, learner, and an ESS that falls with the staleness.

    drawn at version - lag --> queue of at most (max_staleness + 1) batches --> step of the oldest batch --> version + 1

The log-ratio of a token that is d versions stale is normal with standard deviation drift x d, of which `SHARED` of the
variance is its completion's; the ratio's mean is 1, so the token ESS is exp(-(drift d)^2) in the limit. `drift`, what a
version moves a log-prob by, wanders from step to step as real ones do. Every statistic is computed from drawn tokens as
the learner computes it, so its noise is that of so many tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.controller.decide import Kind, Memory, Seen, Setting, decide, setting_of
from shared.config.controller import ControllerConfig

GROUPS = 8  # a batch
TOKENS = 8  # a completion
SHARED = 0.3
WANDER, KEPT = 0.45, 0.5  # standard deviation of log(drift), what a step keeps of the one before: as in the demo
STEP_S = 10.0


@dataclass(frozen=True)
class World:
    """What happens to a run, by step."""

    wanted: Callable[[int], Setting]  # by the operator
    drift: Callable[[int], float]  # nats that a version moves a token's log-prob by, standard deviation
    completions: int = 256  # a step
    speed: float = 2.0  # batches that the servers can draw while the learner takes a step


@dataclass(frozen=True)
class Point:
    """One simulated step."""

    row: dict[str, Any]  # as shared.records.StepRecord, as far as the controller looks
    wanted: Setting
    setting: Setting  # when the step was over
    kind: Kind | None  # what was done after it


def simulate(world: World, steps: int, seed: int, rules: ControllerConfig | None) -> Iterator[Point]:
    """Steps of one run; None: nobody acts."""
    rng, memory, wander = np.random.default_rng(seed), Memory(), 0.0
    queue: deque[tuple[int, int]] = deque()  # (version that drew, latest then), one a group
    drawn = 0.0
    for version in range(steps):
        wanted = world.wanted(version)
        setting = setting_of(memory, wanted)
        drawn = min(drawn, GROUPS) + world.speed * GROUPS
        while len(queue) < GROUPS or (drawn >= 1 and len(queue) < (setting.max_staleness + 1) * GROUPS):
            queue.append((max(0, version - setting.lag), version))
            drawn -= 1
        wander = KEPT * wander + np.sqrt(1 - KEPT**2) * WANDER * rng.standard_normal()
        batch = [queue.popleft() for _ in range(GROUPS)]
        row = _row(version, batch, world.drift(version) * np.exp(wander), world.completions, rng)
        action = None
        if rules is not None:
            now = STEP_S * version
            memory, action = decide(rules, memory, Seen([row], wanted, version + 1, 1.0, now))
        yield Point(row, wanted, setting_of(memory, wanted), action.kind if action else None)


def _row(
    version: int, batch: list[tuple[int, int]], drift: float, completions: int, rng: np.random.Generator
) -> dict[str, Any]:
    """The record of a step at this version."""
    staleness = np.repeat([version - by for by, _ in batch], completions // GROUPS)
    waited = np.array([version - latest for _, latest in batch])
    lag = np.array([latest - by for by, latest in batch])
    size = drift * staleness[:, None]
    noise = np.sqrt(SHARED) * rng.standard_normal((len(staleness), 1))
    noise = noise + np.sqrt(1 - SHARED) * rng.standard_normal((len(staleness), TOKENS))
    ratio = np.exp(size * noise - size**2 / 2).ravel()
    top = np.sort(ratio)[-int(np.ceil(ratio.size / 100)) :]
    return {
        "step": version + 1,
        "policy_version": version,
        "at": STEP_S * version,
        "tokens": ratio.size,
        "trajectories": len(staleness),
        "token_ess": float(ratio.sum() ** 2 / (ratio.size * (ratio**2).sum())),
        "largest_weight_share": float(ratio.max() / ratio.sum()),
        "top_1_percent_mass": float(top.sum() / ratio.sum()),
        "staleness_mean": float(staleness.mean()),
        "lag_mean": float(lag.mean()),
        "lag_max": int(lag.max()),
        "flight_mean": 0.0,
        "flight_max": 0,
        "queue_mean": float(waited.mean()),
        "queue_max": int(waited.max()),
    }
