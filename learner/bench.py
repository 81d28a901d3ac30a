"""What a step costs, measured where it runs: `python -m learner.bench shadows` (or another of BENCHMARKS) prints JSON.

`python -m learner.bench learner` is in bench_step.py, with options of its own.

Every variant takes the same step in turn, round after round, and is compared with the first one of its own round:
whatever else the machine does meets all of them. Needs no Redis.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.batch import StepBatch, batch_rewards, build_step
from learner.bench_meter import synchronize
from learner.model import PolicyModel, choose_device, use_configured_threads
from learner.objective.registry import OBJECTIVES, build
from learner.objectives import Objectives
from learner.ranks import ALONE
from learner.step import backward, make_optimizer, prepare, take_step
from learner.tiny_model import build_model, build_tokenizer
from shared.config.learner import LearnerConfig
from shared.config.run import TinyModelConfig
from shared.types import Group, SamplingSettings, Source, Trajectory, VersionSpan, group_id_for

SMALL_QWEN3 = TinyModelConfig(
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
)
GROUPS, GROUP_SIZE, PROMPT, LONGEST = 2, 8, 16, 40
THREE = ("grpo", "truncated_is", "reinforce")
VARIANTS: dict[str, tuple[tuple[str, ...], int]] = {  # the shadows, and shadow_gradients_every
    "none": ((), 0),
    "3 shadows": (THREE, 0),
    "all shadows": (tuple(OBJECTIVES), 0),
    "3 shadows, gradients compared": (THREE, 1),
    "all shadows, gradients compared": (tuple(OBJECTIVES), 1),
}


def shadows(device: torch.device, rounds: int) -> dict[str, Any]:
    """Time of a P3O step with shadows, in times of the step without any: the median over the rounds."""
    policy = _policy(device)
    batches = [_batch(pieces) for pieces in (1, 5)]
    return {
        **machine(device, policy),
        "trained_tokens": batches[0].trained_tokens,
        "all_shadows": len(OBJECTIVES),
        "rounds": rounds,
        "by_micro_batches": {str(len(batch.micro_batches)): _compared(policy, batch, rounds) for batch in batches},
    }


def phases(device: torch.device, rounds: int) -> dict[str, Any]:
    """What knowing the whole step before its first backward pass costs: its share of a P3O step's time."""
    policy = _policy(device)
    found = {}
    for pieces in (1, 5):
        batch = _batch(pieces)
        shares = [_prepass_share(policy, batch) for _ in range(rounds + 1)][1:]  # the first allocates
        found[str(len(batch.micro_batches))] = {"prepass_share": round(statistics.median(shares), 3)}
    return {**machine(device, policy), "rounds": rounds, "by_micro_batches": found}


def _prepass_share(policy: PolicyModel, batch: StepBatch) -> float:
    """The forward passes without gradient, in parts of both phases."""
    started = time.perf_counter()
    prepared = prepare(policy, batch, Objectives(build("p3o")), {}, ALONE)
    backward(policy, prepared, None)
    synchronize(policy.device)
    return prepared.prepass_s / (time.perf_counter() - started)


def _policy(device: torch.device) -> PolicyModel:
    return PolicyModel(build_model(SMALL_QWEN3, build_tokenizer(["1 + 2 = 3"], SMALL_QWEN3.vocab_size)).to(device))


def machine(device: torch.device, policy: PolicyModel) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in policy.named_parameters().values()),
    }


def _compared(policy: PolicyModel, batch: StepBatch, rounds: int) -> dict[str, Any]:
    """Seconds of the step without shadows, and the others in times of it."""
    beyond = _beyond(policy, batch)
    for variant in VARIANTS:  # the first step of each allocates, and compiles what is compiled
        _seconds(policy, batch, variant, beyond)
    taken = [{variant: _seconds(policy, batch, variant, beyond) for variant in VARIANTS} for _ in range(rounds)]
    first, *others = VARIANTS
    return {
        "seconds": round(statistics.median(times[first] for times in taken), 4),
        "ratio": {v: round(statistics.median(times[v] / times[first] for times in taken), 3) for v in others},
    }


def _seconds(policy: PolicyModel, batch: StepBatch, variant: str, beyond: Mapping[str, Tensor]) -> float:
    """Of one step from these weights, which it leaves as they are."""
    names, every = VARIANTS[variant]
    objectives = Objectives(build("p3o"), tuple(build(name) for name in names))
    config = LearnerConfig(learning_rate=0.0, shadow_gradients_every=every)
    optimizer = make_optimizer(policy, config)
    given = {name: values for name, values in beyond.items() if name in objectives.needs}
    synchronize(policy.device)
    started = time.perf_counter()
    outcome = take_step(policy, optimizer, batch, objectives, config, 1, beyond=given)
    synchronize(policy.device)
    if outcome.skipped:
        raise RuntimeError(f"the step was skipped for a {outcome.skipped}: nothing was measured")
    return time.perf_counter() - started


def _batch(pieces: int) -> StepBatch:
    """Completions of uneven lengths in so many micro-batches, or one more."""
    rng = np.random.default_rng(0)
    groups = [random_group(index, rng) for index in range(GROUPS)]
    tokens = sum(PROMPT + t.length for group in groups for t in group.trajectories)
    whole = build_step(groups, batch_rewards(groups), "group_std", tokens)
    if pieces == 1:
        return whole
    return build_step(groups, batch_rewards(groups), "group_std", whole.computed_tokens // pieces + PROMPT)


def random_group(index: int, rng: np.random.Generator) -> Group:
    """Completions of uneven lengths and unequal rewards, with random tokens."""
    return Group(
        group_id=group_id_for("bench", index),
        prompt_index=index,
        environment="bench",
        prompt_ids=rng.integers(0, 100, PROMPT, dtype=np.int32),
        trajectories=tuple(_trajectory(LONGEST - 4 * i, float(i % 2), rng) for i in range(GROUP_SIZE)),
        server_id="bench",
        lag=0,
        started_at=0.0,
        completed_at=0.0,
        trace_id="bench",
    )


def _trajectory(length: int, reward: float, rng: np.random.Generator) -> Trajectory:
    return Trajectory(
        token_ids=rng.integers(0, 100, length, dtype=np.int32),
        behavior_logprobs=(-5 - rng.random(length)).astype(np.float32),
        loss_mask=np.ones(length, dtype=np.bool_),
        source=np.full(length, Source.POLICY, dtype=np.uint8),
        versions=(VersionSpan(0, 0, length),),
        reward=reward,
        rewards={"reward": reward},
        finish_reason="stop",
        sampling=SamplingSettings(),
    )


@torch.no_grad()
def _beyond(policy: PolicyModel, batch: StepBatch) -> dict[str, Tensor]:
    """All that an objective may need beyond the batch."""
    now = torch.cat([policy.logprobs(m.to(policy.device)) for m in batch.micro_batches])
    some = torch.cat([m.sequence_of for m in batch.micro_batches]).to(policy.device) % GROUP_SIZE == 0
    logprobs = {f"{name}_logprobs": now - 0.1 for name in ("proximal", "preceding", "ref")}
    return {**logprobs, "expert": some, "replayed": some}


def patches(device: torch.device, rounds: int) -> dict[str, Any]:
    """What `rounds` versions take as patches of each other."""
    from learner.bench_patches import measure

    return measure(device, rounds)


def measures(device: torch.device, rounds: int) -> dict[str, Any]:
    """What all that is measured of a step adds to it."""
    from learner.bench_measures import measure

    return measure(device, rounds)


BENCHMARKS: dict[str, Callable[[torch.device, int], dict[str, Any]]] = {
    "shadows": shadows,
    "phases": phases,
    "patches": patches,
    "measures": measures,
}


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["learner"]:
        from learner import bench_step

        bench_step.main(given[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m learner.bench", description="What a step costs.")
    parser.add_argument("what", choices=sorted([*BENCHMARKS, "learner"]))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions; of patches, versions")
    parser.add_argument("--json", action="store_true", help="of patches: JSON instead of a table; of others always")
    options = parser.parse_args(given)
    use_configured_threads()
    measure = BENCHMARKS[options.what]
    told = measure(choose_device(options.device), options.rounds)
    if options.what == "patches" and not options.json:
        from learner.bench_patches import table

        sys.stdout.write(table(told) + "\n")
    else:
        sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
