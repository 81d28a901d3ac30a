"""The processes that share one optimizer step. What they exchange is each token's numbers, and the gradient.

    every rank: its own tokens --gather--> the whole step --objective--> its own tokens' slopes --backward--> sum

A step's statistics need all of its tokens; those are a few dozen bytes each, so every rank gets them all and
computes the same objective on the same numbers. No statistic is merged in a way of its own, none can be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from learner.objective.core import OF_COMPLETIONS, Step


@dataclass(frozen=True)
class Ranks:
    """A process group of torch.distributed; without one, this process alone."""

    group: dist.ProcessGroup | None = None

    @property
    def count(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def gather(self, step: Step) -> tuple[Step, slice]:
        """The whole step from every rank's part, in the order of the ranks, and which of its tokens are this rank's.

        A rank may have no token. Completions and groups are numbered on from rank to rank; micro-batches are not:
        the first ones of all ranks are one.
        """
        if self.count == 1:
            return step, slice(0, step.tokens)
        device = step.policy_logprobs.device
        groups = int(step.group_of.max()) + 1 if step.sequences else 0
        own = torch.tensor([step.tokens, step.sequences, groups], device=device)
        sizes = torch.stack(self._all_gather(own)).cpu()
        rank = dist.get_rank(self.group)
        before = sizes[:rank].sum(0).tolist()
        shifted = replace(step, sequence_of=step.sequence_of + before[1], group_of=step.group_of + before[2])
        fields = {name: value for name, value in vars(shifted).items() if isinstance(value, Tensor)}
        whole = {
            name: self._concatenate(value, sizes[:, 1 if name in OF_COMPLETIONS else 0].tolist())
            for name, value in fields.items()
        }
        return replace(shifted, **whole), slice(before[0], before[0] + step.tokens)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Makes every rank's gradients their sum over the ranks; a rank without any has zeros."""
        if self.count == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.sum(gradients)

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Makes every rank's tensors their sum over the ranks, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.group)

    def _concatenate(self, values: Tensor, sizes: list[int]) -> Tensor:
        """Ranks' tensors of these lengths in one; they travel padded to the longest."""
        plain = values.to(torch.uint8) if values.dtype == torch.bool else values
        padded = plain.new_zeros(max(sizes))
        padded[: len(plain)] = plain
        pieces = self._all_gather(padded)
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)]).to(values.dtype)

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        pieces = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(pieces, own, group=self.group)
        return pieces


ALONE = Ranks()
