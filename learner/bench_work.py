"""The work of `trustbatch bench learner`: groups of skewed lengths, a model of random weights, the padded path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from learner.model import choose_device
from shared.types import Group, SamplingSettings, Source, Trajectory, VersionSpan, group_id_for

SHAPES: dict[str, tuple[int, int, int, int, int, int]] = {  # hidden, MLP, layers, heads, key-value heads, head size
    "demo": (128, 256, 3, 4, 2, 32),
    "small": (256, 768, 4, 4, 2, 64),
    "100m": (768, 2304, 14, 12, 4, 64),
    "qwen3-0.6b": (1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": (2048, 6144, 28, 16, 8, 128),
}
PADDED_LOGITS = 2**31  # bytes of one copy of the logits that the padded path takes at once


@dataclass(frozen=True)
class Work:
    """What every variant gets."""

    shape: str
    vocabulary: int
    sequences: int
    group_size: int
    prompt: int  # tokens
    shortest: int  # tokens, prompt included
    longest: int
    seed: int
    rounds: int
    device: str

    def lengths(self) -> list[int]:
        """Log-normal: about a third of the padded area is filled; the longest is there."""
        rng = np.random.default_rng(self.seed)
        drawn = rng.lognormal(np.log(0.25 * self.longest), 0.8, self.sequences)
        found: list[int] = drawn.clip(self.shortest, self.longest).astype(int).tolist()
        return [self.longest, *found[1:]]

    def groups(self, *, apart: bool = False) -> list[Group]:
        """The sequences in groups; `apart`: each a group of its own, with the same tokens."""
        rng = np.random.default_rng(self.seed + 1)
        lengths, groups = self.lengths(), list[Group]()
        for i in range(0, self.sequences, self.group_size):
            prompt = rng.integers(0, self.vocabulary, self.prompt, dtype=np.int32)
            drawn = [self._trajectory(n - self.prompt, k, rng) for k, n in enumerate(lengths[i : i + self.group_size])]
            members = [(t,) for t in drawn] if apart else [tuple(drawn)]
            groups += [group_of(len(groups) + j, prompt, trajectories) for j, trajectories in enumerate(members)]
        return groups

    def _trajectory(self, length: int, number: int, rng: np.random.Generator) -> Trajectory:
        near = -np.log(self.vocabulary) + 0.3 * rng.standard_normal(length)
        return Trajectory(
            token_ids=rng.integers(0, self.vocabulary, length, dtype=np.int32),
            behavior_logprobs=np.minimum(near, 0).astype(np.float32),
            loss_mask=np.ones(length, dtype=np.bool_),
            source=np.full(length, Source.POLICY, dtype=np.uint8),
            versions=(VersionSpan(0, 0, length),),
            reward=float(number % 2),
            rewards={},
            finish_reason="stop",
            sampling=SamplingSettings(),
        )

    def model(self) -> Any:
        """Random weights; a pure function of shape, vocabulary and seed."""
        from transformers import Qwen3Config, Qwen3ForCausalLM

        hidden, mlp, layers, heads, kv_heads, head_dim = SHAPES[self.shape]
        torch.manual_seed(self.seed)
        module: Any = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=self.vocabulary,
                hidden_size=hidden,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                head_dim=head_dim,
                max_position_embeddings=max(40_960, self.longest),
                tie_word_embeddings=True,
            )
        )
        return module.to(choose_device(self.device))  # type: ignore[arg-type]

    def flops(self) -> float:
        """Of a step that computes nothing twice and nothing in vain."""
        hidden, mlp, layers, heads, kv_heads, head_dim = SHAPES[self.shape]
        weights = layers * hidden * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * mlp)
        lengths = np.array(self.lengths(), dtype=np.float64)
        trained = lengths.sum() - self.sequences * self.prompt
        attention = layers * heads * head_dim * float((lengths**2).sum())
        return 6 * float(weights * lengths.sum() + self.vocabulary * hidden * trained + attention)


def group_of(index: int, prompt: np.ndarray[Any, np.dtype[np.int32]], trajectories: tuple[Trajectory, ...]) -> Group:
    """A group of these."""
    return Group(
        group_id=group_id_for("bench", index),
        prompt_index=index,
        environment="bench",
        prompt_ids=prompt,
        trajectories=trajectories,
        server_id="bench",
        lag=0,
        started_at=0.0,
        completed_at=0.0,
        trace_id="bench",
    )


def padded_step(work: Work, module: Any, optimizer: torch.optim.Optimizer) -> Callable[[], dict[str, Any]]:
    """P3O as it is commonly written; ESS is that of each micro-batch, which saves it a forward pass."""
    trajectories = [(g.prompt_ids, t) for g in work.groups() for t in g.trajectories]
    at_once = max(1, PADDED_LOGITS // (4 * work.longest * work.vocabulary))
    cuts = [trajectories[i : i + at_once] for i in range(0, len(trajectories), at_once)]
    trained = sum(t.length for _, t in trajectories)
    filled = sum(work.lengths()) / (work.longest * work.sequences)
    device = next(module.parameters()).device

    def step() -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        for cut in cuts:
            padded_loss(module, cut, work.longest, trained, device).backward()
        clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return {"micro_batches": len(cuts), "packing_efficiency": filled, "prepass_share": 0.0}

    return step


def padded_loss(
    module: Any, cut: Sequence[tuple[Any, Trajectory]], longest: int, trained: int, device: torch.device
) -> Tensor:
    """Of some sequences, as their share of a step with so many trained tokens."""
    ids = torch.zeros(len(cut), longest, dtype=torch.int64)
    mask = torch.zeros(len(cut), longest, dtype=torch.bool)
    behavior, advantages = torch.zeros(len(cut), longest), torch.zeros(len(cut), longest)
    for row, (prompt, t) in enumerate(cut):
        own = slice(len(prompt), len(prompt) + t.length)
        ids[row, : own.stop] = torch.from_numpy(np.concatenate([prompt, t.token_ids]))
        mask[row, own] = True
        behavior[row, own] = torch.from_numpy(t.behavior_logprobs)
        advantages[row, own] = 2 * t.reward - 1
    ids, mask, behavior, advantages = (x.to(device) for x in (ids, mask, behavior, advantages))
    logits = module(input_ids=ids, use_cache=False).logits[:, :-1] / 1.0
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    logprobs = logprobs[mask[:, 1:]]
    log_ratio = logprobs - behavior[:, 1:][mask[:, 1:]]
    ratio = log_ratio.detach().exp()
    ess = ratio.sum().square() / (len(ratio) * ratio.square().sum())
    score = ratio.clamp(max=ess) * advantages[:, 1:][mask[:, 1:]] * logprobs
    kl = log_ratio + (-log_ratio).exp() - 1
    return ((1 - ess) * kl - score).sum() / trained
