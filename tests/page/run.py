"""A run as its processes would write it, without any of them: numbers are made of drawn log-ratios, so they agree."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from shared.control import ControlState, EvaluationResult, Latest
from shared.histogram import LOG_RATIO_EDGES
from shared.keys import Keys
from shared.redis_client import Client
from shared.runs import register
from tests.services.rows import step

BUCKETS = {0: "0", 1: "1", 2: "2", 3: "3-4", 4: "3-4", 5: "5-8", 6: "5-8"}
SERVERS = ("r0", "r1", "r2")
TOKENS = 1200  # a step
TOTAL = 600  # steps after which it is over
STEP_S = 0.8


def statistics(log_ratio: np.ndarray[Any, Any], of: np.ndarray[Any, Any] | None = None) -> dict[str, float]:
    """What the learner would say of these tokens, those where `of` is true of a step's."""
    whole_sum = float(np.exp(log_ratio).sum())
    log_ratio = log_ratio if of is None else log_ratio[of]
    ratio = np.exp(log_ratio)
    total, n = float(ratio.sum()), len(ratio)
    ess = min(1.0, total**2 / (n * float((ratio**2).sum())))
    whole = np.exp(log_ratio.reshape(-1, 12).sum(axis=1)) if n % 12 == 0 else ratio
    return {
        "tokens": n,
        "token_ess": ess,
        "sequence_ess": min(1.0, float(whole.sum()) ** 2 / (len(whole) * float((whole**2).sum()))),
        "ratio_p50": float(np.median(ratio)),
        "ratio_max": float(ratio.max()),
        "kl": float(np.mean(ratio * log_ratio - ratio + 1)),
        "capped_share": float(np.mean(ratio > ess)),
        "weight_share": total / whole_sum,
    }


def row(number: int, at: float, stale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """The record of one step; `stale` widens the ratios."""
    drawn = np.random.default_rng([seed, number])
    staleness = np.minimum(drawn.poisson(1.8 * stale, TOKENS), 6)
    spread = 0.004 + 0.055 * stale * staleness
    log_ratio = drawn.normal(-(spread**2) / 2, spread)
    server = np.arange(TOKENS) % len(SERVERS)
    ratio = np.sort(np.exp(log_ratio))
    whole = statistics(log_ratio)
    fresh = statistics(log_ratio, staleness == 0) if (staleness == 0).any() else None
    of_step: dict[str, Any] = {name: v for name, v in whole.items() if name not in ("tokens", "weight_share")}
    oldest = int(staleness.max())
    by_bucket = {name: np.isin(staleness, [v for v, n in BUCKETS.items() if n == name]) for name in BUCKETS.values()}
    waits = float(drawn.gamma(2, 0.06))
    return step(
        number,
        at=at,
        groups=25,
        trajectories=100,
        tokens=TOKENS,
        reward_mean=float(np.clip(0.85 - 0.62 * math.exp(-number / 140) + drawn.normal(0, 0.035), 0, 1)),
        length_mean=12.0,
        log1m_token_ess=math.log(1 - whole["token_ess"]),
        chi2=1 / whole["token_ess"] - 1,
        ratio_min=float(ratio[0]),
        ratio_p1=float(np.quantile(ratio, 0.01)),
        ratio_p99=float(np.quantile(ratio, 0.99)),
        log_ratio_abs_max=float(np.abs(log_ratio).max()),
        largest_weight_share=float(ratio[-1] / ratio.sum()),
        top_1_percent_mass=float(ratio[-TOKENS // 100 :].sum() / ratio.sum()),
        staleness_mean=float(staleness.mean()),
        staleness_max=oldest,
        lag_mean=float(staleness.mean()) * 0.45,
        lag_max=oldest,
        flight_mean=float(staleness.mean()) * 0.2,
        queue_mean=float(staleness.mean()) * 0.35,
        wait_s=waits,
        compute_s=float(drawn.normal(0.42, 0.02)),
        publish_s=float(drawn.gamma(4, 0.012)),
        by_staleness={name: statistics(log_ratio, of) for name, of in by_bucket.items() if of.any()},
        **of_step,
    ) | {
        "log_ratio_counts": np.histogram(log_ratio, [-np.inf, *LOG_RATIO_EDGES, np.inf])[0].tolist(),
        "by_server": {name: statistics(log_ratio, server == i) for i, name in enumerate(SERVERS)},
        "floor_token_ess": fresh["token_ess"] if fresh else None,
        "floor_mean_nats": float(np.abs(log_ratio[staleness == 0]).mean()) if fresh else None,
    }


def beat(control: ControlState, number: int, seconds: float = 60, **of_servers: Mapping[str, Any]) -> None:
    """Heartbeats of a learner and three servers that have done so many steps."""
    now = time.time()
    control.beat(
        "learner",
        {
            "kind": "learner",
            "state": "waiting for groups (12 of 32)",
            "since": now - 0.4,
            "step": number,
            "policy_version": number,
            "host": "node-a",
            "device": "cuda:0",
        },
        seconds,
    )
    for i, name in enumerate(SERVERS):
        lag = (0, 2, 4)[i]
        values = {
            "kind": "rollout", "state": "generating" if i else "waiting for credit (staleness)", "since": now - 3 * i,
            "policy_version": max(0, number - lag), "lag": lag, "lag_served": min(lag, number), "in_flight": 8 - i,
            "largest_lag": 8, "arm": "", "groups": 12 * number - i, "tokens": 400 * number, "floor_token_ess": 0.99998,
            "floor_mean_nats": 0.0031, "proof_max_nats": 0.021, "engine": "vllm", "device": "cuda",
        }  # fmt: skip
        control.beat(f"rollout:{name}", {**values, **of_servers.get(name, {})}, seconds)


def write(client: Client, run_id: str, steps: int, stale: float = 1.0, seed: int = 0) -> ControlState:
    """A run in full swing, its newest step done just now."""
    began = time.time() - steps * STEP_S
    control = ControlState(client, Keys(run_id))
    register(client, Keys(run_id), TOTAL)
    control.set_phase("running")
    epoch = control.take_epoch()
    for number in range(1, steps + 1):
        widened = stale * (1 + 1.6 * math.exp(-(((number - 0.7 * steps) / (0.03 * steps + 1)) ** 2)))
        control.add_history(row(number, began + number * STEP_S, widened, seed))
    control.announce(epoch, Latest(steps, steps - 1, steps), 0, [])
    for version in range(0, steps + 1, max(1, steps // 8)):
        accuracy = 0.8 - 0.57 * math.exp(-version / 130)
        control.finish_evaluation(
            version, EvaluationResult(version, accuracy, 256, 6.0, 2.0, "r0", began + version * STEP_S)
        )
    beat(control, steps)
    control.add_event("lag", "servers are to lag by 2, r2 by 4", "operator")
    control.add_event("sync", f"r1 serves version {steps - 2}", "rollout:r1")
    return control


def examples(number: int) -> list[dict[str, Any]]:
    """The group that a step's ratios hang on, with text that would be markup were it not text."""
    logs = [0.01, 2.0, -0.4, 0.05, -1.8]
    completion = {
        "tokens": ["<i>", "m", "a", "\n", " e"],
        "log_ratio": logs,
        "start": 0,
        "length": len(logs),
        "versions": [[max(0, number - 3), 0, 2], [max(0, number - 2), 2, 5]],
        "reward": 1.0,
        "finish_reason": "stop",
        "weight_share": 0.21,
    }
    return [
        {
            "step": number,
            "why": ["largest weight share"],
            "weight_share": 0.41,
            "log_ratio_abs_max": 2.0,
            "group_id": f"shown:{number}",
            "prompt_index": number,
            "server_id": "r2",
            "environment": "spell_backward",
            "lag": 4,
            "prompt": "Spell <b>backward</b>: stream",
            "rewards": [1.0, 0.0],
            "trajectories": [completion, completion | {"reward": 0.0}],
        }
    ]
