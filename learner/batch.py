"""Groups to tensors: trained tokens flattened, micro-batches padded. Pure functions.

B trajectories of a step, b of a micro-batch, L their padded length, n trained tokens of the micro-batch.
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
from shared.types import BoolArray, Group, Source, Trajectory

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

NO_VERSION = -1  # of a token that an expert wrote


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass sees."""

    input_ids: Tensor  # [b, L] int64, prompt and completion, padded on the right with 0
    rows: Tensor  # [n] int64, of the trained tokens in input_ids
    columns: Tensor  # [n] int64, at least 1
    temperature: Tensor  # [n] float32
    behavior_logprobs: Tensor  # [n] float32, nats
    advantages: Tensor  # [n] float32; 0 for an expert's token
    sequence_of: Tensor  # [n] int64, index of the token's trajectory within the step

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @property
    def trained_tokens(self) -> int:
        """The trained tokens, n."""
        return len(self.rows)


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
    def sequence_of(self) -> Tensor:
        """The trajectory of every trained token, [trained tokens] int64."""
        pieces = [m.sequence_of for m in self.micro_batches]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)

    def staleness(self, of: Callable[[int], int]) -> Int64Array:
        """The staleness of every trained token that the policy drew, given that of a version."""
        known, where = np.unique(self.versions[self.versions != NO_VERSION], return_inverse=True)
        return np.array([of(int(version)) for version in known], dtype=np.int64)[where]


@dataclass(frozen=True)
class _Row:
    """One trajectory, ready to be padded."""

    index: int  # within the step
    ids: npt.NDArray[np.int32]  # [P + T]
    trained: Int64Array  # [k], positions in ids
    trajectory: Trajectory
    advantage: float


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
        micro_batch_tokens: most padded tokens of a micro-batch; a longer trajectory goes alone.

    """
    flat = torch.from_numpy(np.concatenate([np.zeros(0), *rewards]))
    sizes = np.array([len(r) for r in rewards], dtype=np.int64)
    group_of = torch.from_numpy(np.repeat(np.arange(len(groups)), sizes))
    own = _own_trajectories(groups)
    mine = torch.from_numpy(own)
    advantages = torch.zeros_like(flat)
    advantages[mine] = group_advantages(flat[mine], group_of[mine], normalization)
    rows = _rows(groups, advantages.tolist())
    cuts = cut([len(row.ids) for row in rows], micro_batch_tokens)
    pieces = [[rows[i] for i in piece] for piece in cuts]
    ordered = [row for piece in pieces for row in piece]
    return StepBatch(
        groups=tuple(groups),
        micro_batches=tuple(_pad(piece) for piece in pieces),
        rewards=flat.numpy(),
        group_of=group_of,
        own=own,
        signal_share=has_signal(flat[mine], group_of[mine]).double().mean().item(),
        versions=np.concatenate([np.zeros(0, dtype=np.int64), *map(_versions, ordered)]),
        positions=np.concatenate([np.zeros(0, dtype=np.int64), *map(_positions, ordered)]),
        expert=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.bool_), *map(_expert, ordered)])),
    )


def cut(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of trajectories in micro-batches of at most `budget` padded tokens, longest first.

    Sorting by length keeps the padding small; a single trajectory above the budget goes alone.
    """
    pieces: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if pieces and longest * (len(pieces[-1]) + 1) <= budget:
            pieces[-1].append(i)
        else:
            pieces.append([i])
            longest = lengths[i]
    return pieces


def _own_trajectories(groups: Sequence[Group]) -> BoolArray:
    """Which trajectories are the policy's own, [B]."""
    return np.array([not t.by_expert for group in groups for t in group.trajectories], dtype=np.bool_)


def _rows(groups: Sequence[Group], advantages: Sequence[float]) -> list[_Row]:
    """The trajectories that have something to train on."""
    rows = []
    pairs = [(group.prompt_ids, t) for group in groups for t in group.trajectories]
    for index, (prompt, t) in enumerate(pairs):
        trained = np.flatnonzero(t.loss_mask) + len(prompt)
        if len(trained):
            rows.append(_Row(index, np.concatenate((prompt, t.token_ids)), trained, t, advantages[index]))
    return rows


def _pad(piece: Sequence[_Row]) -> MicroBatch:
    ids = np.zeros((len(piece), max(len(row.ids) for row in piece)), dtype=np.int64)
    for i, row in enumerate(piece):
        ids[i, : len(row.ids)] = row.ids
    sizes = torch.tensor([len(row.trained) for row in piece])

    def spread(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(sizes)

    behavior = np.concatenate([row.trajectory.behavior_logprobs[_positions(row)] for row in piece])
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        rows=spread(range(len(piece)), torch.int64),
        columns=torch.from_numpy(np.concatenate([row.trained for row in piece])),
        temperature=spread([row.trajectory.sampling.temperature for row in piece], torch.float32),
        behavior_logprobs=torch.from_numpy(behavior.astype(np.float32)),
        advantages=spread([row.advantage for row in piece], torch.float32),
        sequence_of=spread([row.index for row in piece], torch.int64),
    )


def _versions(row: _Row) -> Int64Array:
    return np.where(_expert(row), NO_VERSION, row.trajectory.token_versions()[_positions(row)])


def _expert(row: _Row) -> BoolArray:
    written: BoolArray = row.trajectory.source[_positions(row)] == Source.EXPERT
    return written


def _positions(row: _Row) -> Int64Array:
    """Positions of the trained tokens within the trajectory's own arrays."""
    return row.trained - (len(row.ids) - row.trajectory.length)
