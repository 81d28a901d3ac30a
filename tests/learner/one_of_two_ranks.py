"""One of two ranks, a process of its own: `python -m tests.learner.one_of_two_ranks RANK MODEL FOLDER`.

Takes every case's step in every share of the groups, and writes what this rank had afterwards.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner.model import PolicyModel
from learner.objective.core import Step
from learner.objective.registry import build
from learner.objective.statistics import RatioStatistics, ratio_statistics
from learner.objectives import Objectives
from learner.ranks import Ranks
from shared.types import Group
from tests.learner import stale

SHARES: dict[str, tuple[slice, int]] = {  # the groups of rank 0, and both ranks' micro_batch_tokens
    "uneven": (slice(0, 1), stale.IN_THREE),
    "rank 0 empty": (slice(0, 0), stale.ALL_IN_ONE),
    "rank 1 empty": (slice(0, None), stale.IN_THREE),
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
COMPARED = stale.STILL.model_copy(update={"shadow_gradients_every": 1})


def main(rank: int, model: Path, folder: Path) -> None:
    """Does it all in one process group."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    ranks = Ranks(dist.group.WORLD)
    found: dict[str, Any] = {"gathered": gathered(ranks, rank), "gradients": {}}
    for name, dtype in DTYPES.items():
        policy = stale.load(model, dtype)
        groups = stale.stale_groups(stale.load(model))
        for share in SHARES:
            for case, objective in stale.CASES.items():
                stale.take(policy, part(groups, share, rank), Objectives(objective), ranks=ranks)
                found["gradients"][name, share, case] = stale.gradient_of(policy)
    found["cosines"] = cosines(stale.load(model, torch.float64), groups, ranks, rank)
    found["skipped"] = skipped(stale.load(model), groups, ranks, rank)
    found["statistics"] = merged(rank)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def part(groups: list[Group], share: str, rank: int) -> Any:
    """This rank's batch."""
    first, tokens = SHARES[share]
    mine = groups[first]
    return stale.cut_into(mine if rank == 0 else [g for g in groups if g not in mine], tokens)


def step_of(rank: int) -> Step:
    """Two completions of one group on rank 0, three of two groups on rank 1, the second of them without a token."""
    tokens, base = (3, 0.0) if rank == 0 else (5, 10.0)
    values = base + torch.arange(tokens, dtype=torch.float64)
    return Step(
        policy_logprobs=values,
        behavior_logprobs=values + 0.5,
        advantages=-values,
        sequence_of=torch.tensor([1, 1, 0] if rank == 0 else [2, 2, 0, 0, 0]),
        group_of=torch.tensor([0, 0] if rank == 0 else [0, 0, 1]),
        rewards=base + torch.arange(2.0 if rank == 0 else 3.0),
        micro_batch_of=torch.tensor([0, 0, 1] if rank == 0 else [0, 0, 1, 1, 1]),
        expert=torch.arange(tokens) == rank,
    )


def gathered(ranks: Ranks, rank: int) -> dict[str, Any]:
    """Every field of the whole step, and where this rank's tokens are."""
    whole, mine = ranks.gather(step_of(rank))
    return {**vars(whole), "mine": (mine.start, mine.stop)}


def log_ratios(rank: int) -> torch.Tensor:
    """Of this rank's tokens; uneven."""
    return torch.linspace(-2.0, 1.0 + rank, step_of(rank).tokens, dtype=torch.float64)


def merged(rank: int) -> torch.Tensor:
    """Statistics of both ranks' tokens, of which each rank has sent only its own statistics."""
    own = step_of(rank)
    packed = ratio_statistics(log_ratios(rank), own.sequence_of, own.sequences).pack()
    pieces = [torch.empty_like(packed) for _ in range(2)]
    dist.all_gather(pieces, packed)
    return RatioStatistics.unpack(pieces[0]).merge(RatioStatistics.unpack(pieces[1])).pack()


def cosines(policy: PolicyModel, groups: list[Group], ranks: Ranks, rank: int) -> list[float | None]:
    """Of all objectives with P3O."""
    objectives = Objectives(build("p3o"), tuple(stale.CASES.values()))
    outcome = stale.take(policy, part(groups, "uneven", rank), objectives, config=COMPARED, ranks=ranks)
    return [shadow.cosine for shadow in outcome.shadows]


def skipped(policy: PolicyModel, groups: list[Group], ranks: Ranks, rank: int) -> dict[str, Any]:
    """What becomes of a step one token of which, on rank 1, had no chance at all; then of a good one."""
    moving = stale.STILL.model_copy(update={"learning_rate": 1e-3})
    first, *others = groups[-1].trajectories
    logprobs = np.concatenate([[-np.inf], first.behavior_logprobs[1:]]).astype(np.float32)
    broken = replace(groups[-1], trajectories=(replace(first, behavior_logprobs=logprobs), *others))
    told = {}
    for name, step in (("broken", [*groups[:-1], broken]), ("good", groups)):
        before = stale.weights_of(policy)
        outcome = stale.take(policy, part(step, "uneven", rank), Objectives(build("p3o")), config=moving, ranks=ranks)
        told[name] = (outcome.skipped, bool(torch.equal(before, stale.weights_of(policy))), stale.weights_of(policy))
    return told


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
