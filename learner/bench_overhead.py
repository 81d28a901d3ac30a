"""What the learner does beside the model's work, piece by piece: `trustbatch bench learner --overhead`.

    decode       groups from the bytes of the stream, and whether they can be trained on
    batch        rewards, advantages, packing
    objective    the loss of every token, ESS and the other statistics of the step
    record       the step's record and metrics, its line of history, the flight recorder's file

Each is done as the learner does it, in the processor's seconds, and compared with the whole of its step on the same
groups; what waiting for Redis takes is not in it. The demo's groups are a few tokens and its model is small, so its
share is about the largest that one meets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from learner.bench_meter import timed
from learner.bench_work import Work
from learner.files import LineFile, plain
from learner.intake import Held
from learner.lineage import Lineage
from learner.minibatches import split
from learner.model import PolicyModel
from learner.objective.registry import build
from learner.objective.statistics import step_statistics
from learner.objectives import Objectives
from learner.recorder import Recorder
from learner.records import Pace, step_record
from learner.screening import Rules, screen
from learner.staleness import parts_of_staleness
from learner.step import make_optimizer, take_step
from shared.codec import encode_group
from shared.config import Config
from shared.log import configure
from shared.metrics import LearnerMetrics
from shared.stream import Entry
from shared.types import Group, group_id_for

WORKS = {  # the demo's step: 32 groups of 8 completions
    "demo": Work("demo", 320, 256, 8, 16, 20, 24, 0, 5, "cpu"),
    "100 M": Work("100m", 320, 256, 8, 16, 20, 24, 0, 2, "cpu"),
}


def measure() -> dict[str, Any]:
    """Seconds of every piece and of the step, and the share of the pieces in their sum."""
    return {name: _measure(work) for name, work in WORKS.items()}


def _measure(work: Work) -> dict[str, Any]:
    module = work.model()
    policy = PolicyModel(module)
    payloads = [encode_group(group) for group in work.groups()]
    rounds = [_round(policy, payloads) for _ in range(work.rounds)]
    best = {name: min(taken[name] for taken in rounds) for name in rounds[0]}
    step = best.pop("step") - best["objective"]  # which is a part of it
    beside = sum(best.values())
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "seconds": {**best, "model": step},
        "share": beside / (beside + step),
    }


def _round(policy: PolicyModel, payloads: list[bytes]) -> dict[str, float]:
    """One iteration of the learner, piece by piece."""
    objectives, lineage, taken = Objectives(build("p3o")), Lineage(), dict[str, float]()

    def piece(name: str, work: Callable[[], Any]) -> Any:
        seconds, result = timed(work, policy.device)
        taken[name] = taken.get(name, 0.0) + seconds
        return result

    with tempfile.TemporaryDirectory() as name:
        config = Config.model_validate({"run": {"id": "bench", "folder": name}, "learner": {"learning_rate": 0.0}})
        rules = Rules("bench", policy.vocab_size, config.learner.micro_batch_tokens, 0, lineage)
        metrics, history = LearnerMetrics(), LineFile(Path(name) / "history.jsonl")
        recorder = Recorder(config, 1, configure("bench", "learner", "error"))
        optimizer = make_optimizer(policy, config.learner)

        groups = piece("decode", lambda: [screen(_entry(i, payload), rules) for i, payload in enumerate(payloads)])
        assert all(isinstance(group, Group) for group in groups)
        held = [
            Held(f"{i}-0", group, payload, 0) for i, (group, payload) in enumerate(zip(groups, payloads, strict=True))
        ]
        [minibatch] = piece("batch", lambda: split(held, config.learner, 0, 0))
        batch = minibatch.step_batch
        outcome = piece("step", lambda: take_step(policy, optimizer, batch, objectives, config.learner, 1, drawn_by=0))
        piece("objective", lambda: step_statistics(outcome.own, objectives.trained(outcome.own)))

        def record() -> None:
            recorder.keep(1, 0, minibatch, 0, lineage, outcome, {})
            staleness = parts_of_staleness(batch, [0] * len(held), lineage)
            applied = [h.group.prompt_index for h in held]
            row = step_record(1, 0, batch, staleness, outcome, applied, Pace(0.0), {})
            metrics.count_staleness(staleness.total, asdict(staleness))
            metrics.observe(row)
            history.append(plain(row))

        piece("record", record)
    return taken


def _entry(index: int, payload: bytes) -> Entry:
    return Entry(f"{index}-0", group_id_for("bench", index), index, payload, "")


def table(told: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"one step of 256 completions of 4 to 8 tokens, torch {torch.__version__}, {torch.get_num_threads()} thread(s)"
    ]
    for name, row in told.items():
        seconds = ", ".join(f"{piece} {1e3 * taken:,.1f}" for piece, taken in row["seconds"].items())
        lines.append(
            f"{name} ({row['parameters'] / 1e6:,.1f} M parameters): {row['share']:.2%} beside the model; ms: {seconds}"
        )
    return "\n".join(lines)
