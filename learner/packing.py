"""Trajectories of uneven lengths one after the other, without padding. Pure functions of lengths.

pack    trajectories into micro-batches of so many tokens
packed  the trajectories of one micro-batch in a row of N tokens; a prompt that several share stands there once
spread  that row as attention wants it: every trajectory whole, in blocks of like lengths
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64Array = npt.NDArray[np.int64]
TokenIds = npt.NDArray[np.int32]

SLACK = 16  # tokens by which the trajectories of one block of attention may differ
PLACES = 4  # of attention for each token of the budget: every trajectory takes as many as it is long


class Size(NamedTuple):
    """A trajectory's tokens."""

    shared: Hashable  # equal for trajectories that begin with the same prompt
    prompt: int
    own: int  # after the prompt

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.prompt + self.own


class Placed(NamedTuple):
    """Where a trajectory stands in the row."""

    prompt_at: int
    prompt: int  # tokens
    own_at: int
    own: int  # tokens

    @property
    def length(self) -> int:
        """Its tokens, prompt included."""
        return self.prompt + self.own

    def whole(self) -> Int64Array:
        """Where each of its tokens stands, prompt included."""
        prompt, own = np.arange(self.prompt) + self.prompt_at, np.arange(self.own) + self.own_at
        return np.concatenate([prompt, own])


@dataclass
class _Pack:
    room: int  # tokens
    places: int  # left
    members: list[int] = field(default_factory=list)
    prompts: set[Hashable] = field(default_factory=set)

    def new_tokens(self, size: Size) -> int:
        """What this one would add to the row."""
        return size.own if size.shared in self.prompts else size.tokens

    def holds(self, size: Size) -> bool:
        """Whether there is room for it."""
        return self.room >= self.new_tokens(size) and self.places >= size.tokens

    def add(self, i: int, size: Size) -> None:
        """Takes it in."""
        self.room -= self.new_tokens(size)
        self.places -= size.tokens
        self.members.append(i)
        self.prompts.add(size.shared)


def pack(sizes: Sequence[Size], budget: int) -> list[list[int]]:
    """Indices of trajectories in packs of at most `budget` tokens, in which every prompt counts once.

    The longest first, each into the pack that has its prompt, else into the one with the least room that is enough
    (best fit decreasing). Attention gathers a prompt for each trajectory: so those of a pack, prompts included, have
    PLACES times the budget together at most. One that is longer than the budget goes alone.
    """
    packs: list[_Pack] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i].tokens, i)):
        size = sizes[i]
        fit = [p for p in packs if p.holds(size)]
        known = [p for p in fit if size.shared in p.prompts]
        chosen = min(known or fit, key=lambda p: p.room, default=None)
        if chosen is None:
            chosen = _Pack(budget, PLACES * budget)
            packs.append(chosen)
        chosen.add(i, size)
    return [p.members for p in packs]


@dataclass(frozen=True)
class Spread:
    """The places of attention: blocks one after the other, each of so many trajectories of one length.

    N tokens in the row, R places. A shared prompt has a place in every trajectory; what is missing to a block's
    length is filled with the trajectory's first tokens, behind its last one, where causal attention hides them.
    """

    blocks: tuple[tuple[int, int], ...]  # trajectories and length of each
    token: Tensor  # [R] int64, the token of each place
    place: Tensor  # [N] int64, the first place of each token
    again: Tensor  # places of tokens that already have one, without those that only fill

    def to(self, device: torch.device) -> Spread:
        """The same on another device."""
        return Spread(self.blocks, *(t.to(device) for t in (self.token, self.place, self.again)))


@dataclass(frozen=True)
class Packed:
    """Trajectories in a row of N tokens."""

    ids: Tensor  # [N] int64
    positions: Tensor  # [N] int64, within the trajectory
    placed: tuple[Placed, ...]
    spread: Spread

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed(self.ids.to(device), self.positions.to(device), self.placed, self.spread.to(device))


def packed(trajectories: Sequence[tuple[Hashable, TokenIds, TokenIds]]) -> Packed:
    """The row of trajectories, each (what it shares its prompt with, prompt, own tokens)."""
    placed = place([Size(shared, len(prompt), len(own)) for shared, prompt, own in trajectories])
    row, position = _wholes(placed, [one.length for one in placed])
    ids = np.zeros(max(one.own_at + one.own for one in placed), dtype=np.int64)
    positions = np.zeros_like(ids)
    ids[row] = np.concatenate([part for _, prompt, own in trajectories for part in (prompt, own)])
    positions[row] = position
    return Packed(torch.from_numpy(ids), torch.from_numpy(positions), tuple(placed), spread(placed))


def place(sizes: Sequence[Size]) -> list[Placed]:
    """The row of one micro-batch: every prompt once, right before the first trajectory that begins with it."""
    prompts: dict[Hashable, int] = {}
    placed, end = [], 0
    for size in sizes:
        if size.shared not in prompts:
            prompts[size.shared] = end
            end += size.prompt
        placed.append(Placed(prompts[size.shared], size.prompt, end, size.own))
        end += size.own
    return placed


def spread(placed: Sequence[Placed], slack: int = SLACK) -> Spread:
    """The places for the trajectories of one row; those of a block differ by at most `slack` tokens."""
    ordered = sorted(placed, key=lambda p: -p.length)
    lengths: list[int] = []  # of each one's block
    for one in ordered:
        lengths.append(lengths[-1] if lengths and lengths[-1] - one.length <= slack else one.length)
    token, position = _wholes(ordered, lengths)
    places = np.flatnonzero(position >= 0)
    _, first = np.unique(token[places], return_index=True)
    again = np.delete(places, first)
    blocks = tuple((len(list(same)), length) for length, same in groupby(lengths))
    return Spread(blocks, *map(torch.from_numpy, (token, places[first], again)))


def _wholes(placed: Sequence[Placed], lengths: Sequence[int]) -> tuple[Int64Array, Int64Array]:
    """(where its token stands, its position in the trajectory) of every place; each trajectory has so many places.

    Those beyond its end have its first token and the position -1.
    """
    prompt_at, prompt, own_at, own = np.repeat(np.array(placed, dtype=np.int64), lengths, axis=0).T
    ends = np.cumsum(lengths)
    position = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    position[position >= prompt + own] = -1
    inside = position.clip(0)
    return np.where(inside < prompt, prompt_at + inside, own_at + inside - prompt), position
