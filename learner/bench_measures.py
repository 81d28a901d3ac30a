"""What it costs to measure a step: its record, its examples, the norm of its update, the sample that is split.

In seconds of this thread's processor, so that others on the machine do not count. The step is the demo's: 32 groups of
8 short completions from 4 servers and 4 versions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learner.batch import StepBatch, batch_rewards, build_step
from learner.bench import machine, random_group
from learner.examples import Decoder, examples_of
from learner.lineage import Lineage
from learner.model import PolicyModel
from learner.objective.registry import build
from learner.objectives import Objectives
from learner.records import Pace, step_record
from learner.split import EVERY, split
from learner.staleness import parts_of_staleness
from learner.step import StepOutcome, make_optimizer, take_step
from learner.tiny_model import build_model, build_tokenizer
from learner.update import update_norm
from learner.warm_start import save
from shared.config.learner import LearnerConfig
from shared.config.run import TinyModelConfig
from shared.log import configure
from shared.types import Group, VersionSpan

GROUPS, SERVERS, VERSIONS, LONGEST = 32, 4, 4, 14


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each, and what all of it adds to a step."""
    tokenizer = build_tokenizer(["1 + 2 = 3"], TinyModelConfig().vocab_size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(build_model(TinyModelConfig(), tokenizer), tokenizer, folder)
        policy = PolicyModel.load(str(folder), "float32", device)
        taken = _taken(policy, folder, rounds)
    found = {name: round(1000 * statistics.median(seconds), 2) for name, seconds in taken.items()}
    added = found["record"] + found["examples"] + found["update_norm"] + found["split"] / EVERY
    return {
        **machine(device, policy),
        "rounds": rounds,
        "milliseconds": found,
        "split_every": EVERY,
        "share_of_the_step": round(added / (found["step"] - found["update_norm"]), 4),
    }


def _taken(policy: PolicyModel, folder: Path, rounds: int) -> dict[str, list[float]]:
    batch = _batch()
    config, lineage = LearnerConfig(learning_rate=1e-4), Lineage(latest=VERSIONS - 1)
    objectives, optimizer = Objectives(build("p3o")), make_optimizer(policy, config)
    decoder = Decoder(str(folder), configure("bench", "learner", "error"))
    taken: dict[str, list[float]] = {name: [] for name in ("step", "update_norm", "record", "examples", "split")}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.thread_time()
        result = work()
        taken[name].append(time.thread_time() - started)
        return result

    def record(outcome: StepOutcome) -> Any:
        parts = parts_of_staleness(batch, [VERSIONS - 1] * GROUPS, lineage)
        return step_record(1, VERSIONS - 1, batch, parts, outcome, [], Pace(0.0), {})

    def sample(outcome: StepOutcome) -> Any:
        then = PolicyModel.load(str(folder), "float32", policy.device)
        return split(batch, outcome.own, then, [0, 1, 2, 3], 0, VERSIONS - 1)

    for number in range(rounds + 1):
        outcome = timed("step", lambda: take_step(policy, optimizer, batch, objectives, config, 1))
        timed("update_norm", lambda: update_norm(optimizer))
        timed("record", partial(record, outcome))
        timed("examples", partial(examples_of, 1, batch, outcome.own, decoder))
        timed("split", partial(sample, outcome))
        if number == 0:  # the first allocates, and loads what is loaded once
            for seconds in taken.values():
                seconds.clear()
    return taken


def _batch() -> StepBatch:
    rng = np.random.default_rng(0)
    groups = [_short(random_group(index, rng), index, rng) for index in range(GROUPS)]
    return build_step(groups, batch_rewards(groups), "group_std", 16_384)


def _short(group: Group, index: int, rng: np.random.Generator) -> Group:
    """With answers as short as the demo's, from one server and some version."""
    trajectories = []
    for t in group.trajectories:
        length = int(rng.integers(4, LONGEST))
        version = int(rng.integers(VERSIONS))
        short = {name: getattr(t, name)[:length] for name in ("token_ids", "behavior_logprobs", "loss_mask", "source")}
        trajectories.append(replace(t, versions=(VersionSpan(version, 0, length),), **short))
    return replace(group, trajectories=tuple(trajectories), server_id=f"r{index % SERVERS}")
