"""The reference for packed trajectories: each by itself through transformers' own model, with whole logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from learner.attention import NAME
from learner.batch import MicroBatch
from learner.model import PolicyModel


def logits_one_by_one(policy: PolicyModel, batch: MicroBatch) -> Tensor:
    """The logits that each trained token was drawn from, at its temperature: [n, V], with gradient."""
    policy.module.set_attn_implementation("sdpa")
    found = []
    for one, sequence in zip(batch.packed.placed, torch.unique_consecutive(batch.sequence_of), strict=True):
        mine = batch.sequence_of == sequence
        logits = policy.module(batch.packed.ids[one.whole()][None]).logits[0]
        found.append(logits[batch.packed.positions[batch.before[mine]]] / batch.temperature[mine, None])
    policy.module.set_attn_implementation(NAME)
    return torch.cat(found)


def completions(batch: MicroBatch) -> list[list[int]]:
    """Every trajectory of a micro-batch as the model gets it, prompt included."""
    return [batch.packed.ids[one.whole()].tolist() for one in batch.packed.placed]


def make_wide(policy: PolicyModel) -> None:
    """Float64 throughout: transformers' norms compute in float32 whatever they get."""
    for module in policy.module.double().modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_norm, module)


def _norm(module: Any, hidden: Tensor) -> Tensor:
    scale = (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    normed: Tensor = module.weight * (hidden * scale)
    return normed
