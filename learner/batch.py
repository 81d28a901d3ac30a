"""Groups to tensors: trained tokens flattened, micro-batches packed without padding. Pure functions.

B trajectories of a step, N tokens of a micro-batch, n trained ones among them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.objective.advantages import Normalization, group_advantages, has_signal
from learner.packing import Packed, Size, pack, packed
from shared.types import BoolArray, Group, Source, Trajectory

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

NO_VERSION = -1  # of a token that an expert wrote


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass sees."""

    packed: Packed  # N tokens: prompts, and completions without what no trained token follows
    tokens: Tensor  # [n] int64, the trained tokens
    before: Tensor  # [n] int64, where in the row the token stands that each of them follows
    temperature: Tensor  # [n] float32
    behavior_logprobs: Tensor  # [n] float32, nats
    advantages: Tensor  # [n] float32; 0 for an expert's token
    sequence_of: Tensor  # [n] int64, index of the token's trajectory within the step

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(**{name: part.to(device) for name, part in vars(self).items()})

    @property
    def trained_tokens(self) -> int:
        """The trained tokens, n."""
        return len(self.tokens)


@dataclass(frozen=True)
class StepBatch:
    """All that one optimizer step is made of. Token arrays follow the order of the micro-batches.

    Arrays [B] have an expert's trajectories too, so that `sequence_of` indexes them; what is said of rewards and
    groups (advantages, signal_share, means) is said of the policy's `own` alone.
    """

    groups: tuple[Group, ...]
    micro_batches: tuple[MicroBatch, ...]
    rewards: Float64Array  # [B]
    group_of: Tensor  # [B] int64
    own: BoolArray  # [B], False: an expert's
    signal_share: float  # of groups with unequal rewards
    versions: Int64Array  # [trained tokens], NO_VERSION where an expert wrote the token
    positions: Int64Array  # [trained tokens], tokens of the completion before each
    expert: Tensor  # [trained tokens] bool, written by an expert
    packing_efficiency: float  # share of the micro-batches' token budgets that is used

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The trajectories of all groups, in order."""
        return tuple(t for group in self.groups for t in group.trajectories)

    @property
    def drawn(self) -> tuple[Trajectory, ...]:
        """The policy's own trajectories, in order."""
        return tuple(compress(self.trajectories, self.own))

    @property
    def trained_tokens(self) -> int:
        """The trained tokens of the step."""
        return len(self.versions)

    @property
    def means(self) -> list[tuple[float, float]]:
        """Of each group the mean length, tokens, and the mean reward of the policy's own trajectories."""
        group_of, drawn = self.group_of.numpy()[self.own], self.drawn
        counts = np.bincount(group_of)
        lengths = np.bincount(group_of, weights=[t.length for t in drawn]) / counts
        rewards = np.bincount(group_of, weights=[t.reward for t in drawn]) / counts
        return list(zip(lengths.tolist(), rewards.tolist(), strict=True))

    @property
    def computed_tokens(self) -> int:
        """The tokens that the model computes in one pass: a prompt that a micro-batch shares counts once."""
        return sum(len(m.packed.ids) for m in self.micro_batches)

    @property
    def sequence_of(self) -> Tensor:
        """The trajectory of every trained token, [trained tokens] int64."""
        pieces = [m.sequence_of for m in self.micro_batches]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)

    def staleness(self, of: Callable[[int], int]) -> Int64Array:
        """The staleness of every trained token that the policy drew, given that of a version."""
        known, where = np.unique(self.versions[self.versions != NO_VERSION], return_inverse=True)
        return np.array([of(int(version)) for version in known], dtype=np.int64)[where]


@dataclass(frozen=True)
class _Trained:
    """A trajectory with something to train on."""

    index: int  # within the step
    group: int  # within the step
    prompt_ids: npt.NDArray[np.int32]
    trained: Int64Array  # [k], positions in the completion
    trajectory: Trajectory
    advantage: float

    @property
    def size(self) -> Size:
        """What it takes in a micro-batch."""
        return Size(self.group, len(self.prompt_ids), len(self.own_ids))

    @property
    def own_ids(self) -> npt.NDArray[np.int32]:
        """The tokens of the completion that a trained one follows."""
        return self.trajectory.token_ids[: self.trained[-1]]


def batch_rewards(groups: Sequence[Group], shuffle_seed: Sequence[int] | None = None) -> list[Float64Array]:
    """The rewards of each group, in order.

    Args:
        groups: of the whole batch.
        shuffle_seed: if given, rewards are permuted among all trajectories of the batch, always in the same
            way for the same seed: the control experiment in which nothing can be learned. An expert's stay.

    """
    rewards = np.array([t.reward for group in groups for t in group.trajectories], dtype=np.float64)
    if shuffle_seed is not None:
        own = _own_trajectories(groups)
        rewards[own] = np.random.default_rng(list(shuffle_seed)).permutation(rewards[own])
    return np.split(rewards, np.cumsum([len(group.trajectories) for group in groups])[:-1])


def build_step(
    groups: Sequence[Group],
    rewards: Sequence[Float64Array],
    normalization: Normalization,
    micro_batch_tokens: int,
) -> StepBatch:
    """Turns the groups of one optimizer step into tensors.

    Args:
        groups: no empty prompt among them; may be none, where another rank has some.
        rewards: of each group, one for each trajectory.
        normalization: how advantages are made of rewards.
        micro_batch_tokens: most tokens of a micro-batch; a longer trajectory goes alone.

    """
    flat = torch.from_numpy(np.concatenate([np.zeros(0), *rewards]))
    sizes = np.array([len(r) for r in rewards], dtype=np.int64)
    group_of = torch.from_numpy(np.repeat(np.arange(len(groups)), sizes))
    own = _own_trajectories(groups)
    mine = torch.from_numpy(own)
    advantages = torch.zeros_like(flat)
    advantages[mine] = group_advantages(flat[mine], group_of[mine], normalization)
    trained = _trained(groups, advantages.tolist())
    pieces = [[trained[i] for i in piece] for piece in pack([t.size for t in trained], micro_batch_tokens)]
    ordered = [t for piece in pieces for t in piece]
    micro_batches = tuple(map(_micro_batch, pieces))
    written = np.concatenate([np.zeros(0, dtype=np.uint8), *(t.trajectory.source[t.trained] for t in ordered)])
    expert = written == Source.EXPERT
    versions = [t.trajectory.token_versions()[t.trained] for t in ordered]
    budget = micro_batch_tokens * max(1, len(pieces))
    return StepBatch(
        groups=tuple(groups),
        micro_batches=micro_batches,
        rewards=flat.numpy(),
        group_of=group_of,
        own=own,
        signal_share=has_signal(flat[mine], group_of[mine]).double().mean().item(),
        versions=np.where(expert, NO_VERSION, np.concatenate([np.zeros(0, dtype=np.int64), *versions])),
        positions=np.concatenate([np.zeros(0, dtype=np.int64), *(t.trained for t in ordered)]),
        expert=torch.from_numpy(expert),
        packing_efficiency=min(1.0, sum(len(m.packed.ids) for m in micro_batches) / budget),
    )


def _own_trajectories(groups: Sequence[Group]) -> BoolArray:
    """Which trajectories are the policy's own, [B]."""
    return np.array([not t.by_expert for group in groups for t in group.trajectories], dtype=np.bool_)


def _trained(groups: Sequence[Group], advantages: Sequence[float]) -> list[_Trained]:
    """The trajectories that have something to train on."""
    found = []
    owners = [(i, group.prompt_ids, t) for i, group in enumerate(groups) for t in group.trajectories]
    for index, (group, prompt, t) in enumerate(owners):
        trained = np.flatnonzero(t.loss_mask)
        if len(trained):
            found.append(_Trained(index, group, prompt, trained, t, advantages[index]))
    return found


def _micro_batch(piece: Sequence[_Trained]) -> MicroBatch:
    row = packed([(t.group, t.prompt_ids, t.own_ids) for t in piece])
    sizes = [len(t.trained) for t in piece]
    tokens = np.concatenate([t.trajectory.token_ids[t.trained] for t in piece])
    trained = np.concatenate([t.trained for t in piece])
    prompt_at, prompt, own_at, _ = np.repeat(np.array(row.placed), sizes, axis=0).T

    def each(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(torch.tensor(sizes))

    behavior = np.concatenate([t.trajectory.behavior_logprobs[t.trained] for t in piece])
    return MicroBatch(
        packed=row,
        tokens=torch.from_numpy(tokens.astype(np.int64)),
        before=torch.from_numpy(np.where(trained > 0, own_at + trained - 1, prompt_at + prompt - 1)),
        temperature=each([t.trajectory.sampling.temperature for t in piece], torch.float32),
        behavior_logprobs=torch.from_numpy(behavior.astype(np.float32)),
        advantages=each([t.advantage for t in piece], torch.float32),
        sequence_of=each([t.index for t in piece], torch.int64),
    )
