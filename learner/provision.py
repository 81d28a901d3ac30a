"""What an objective needs beyond the batch and the policy's present weights, given to every optimizer step.

proximal_logprobs    of the weights before the batch's first step      one forward pass a batch
preceding_logprobs   of the weights before the batch before this one   one more, and a copy of the weights
ref_logprobs         of a frozen reference model                       one more, and that model
replayed             whether the batch was trained on before           nothing
expert               who wrote the token                               nothing
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from learner.batch import StepBatch
from learner.minibatches import Minibatch
from learner.model import PolicyModel
from shared.config import Config
from shared.errors import ConfigError


class Provision:
    """Keeps what these need, and computes them once for every batch."""

    def __init__(self, policy: PolicyModel, needs: frozenset[str], reference: PolicyModel | None) -> None:
        """`reference` must be given where `ref_logprobs` is needed."""
        self._policy = policy
        self._needs = needs
        self._reference = reference
        # After a start, or a restart, the policy before the batch before the first one is the one it starts with.
        self._preceding = _copy(policy) if "preceding_logprobs" in needs else None

    def begin_batch(self, minibatches: Sequence[Minibatch]) -> None:
        """Looks at a batch before its first step."""
        for minibatch in minibatches:
            minibatch.beyond.update(self._logprobs(minibatch.step_batch))
        if self._preceding is not None:
            for kept, weights in zip(self._preceding, self._policy.named_parameters().values(), strict=True):
                kept.copy_(weights.detach())

    def of_pass(self, minibatch: Minibatch, number: int) -> dict[str, Tensor]:
        """The fields of `Step` for one step of a minibatch, in its pass `number`, from 0."""
        beyond = dict(minibatch.beyond)
        if "replayed" in self._needs:
            beyond["replayed"] = torch.full((minibatch.step_batch.trained_tokens,), number > 0)
        if "expert" in self._needs:
            beyond["expert"] = minibatch.step_batch.expert
        return beyond

    def _logprobs(self, batch: StepBatch) -> Iterator[tuple[str, Tensor]]:
        if "proximal_logprobs" in self._needs:
            yield "proximal_logprobs", logprobs_now(self._policy, batch)
        if self._preceding is not None:
            with _weights(self._policy, self._preceding):
                yield "preceding_logprobs", logprobs_now(self._policy, batch)
        if self._reference is not None:
            yield "ref_logprobs", logprobs_now(self._reference, batch)


def load_reference(config: Config, needs: frozenset[str], policy: PolicyModel) -> PolicyModel | None:
    """The frozen reference model where it is needed. Raises ConfigError where it cannot be loaded or does not fit."""
    if "ref_logprobs" not in needs:
        return None
    path = config.learner.reference or config.model.path
    reference = PolicyModel.load(
        path, config.model.dtype, policy.device, matrices=policy.matrices, key="learner.reference"
    )
    if reference.vocab_size != policy.vocab_size:
        raise ConfigError(
            f"learner.reference {path!r} has {reference.vocab_size} tokens, the policy {policy.vocab_size}: "
            "it must be a model with the policy's own tokenizer"
        )
    return reference


@torch.no_grad()
def logprobs_now(policy: PolicyModel, batch: StepBatch) -> Tensor:
    """The batch's log-probs under the policy's present weights, [n], without gradient."""
    like = next(iter(policy.named_parameters().values()))
    return torch.cat([like.new_empty(0), *(policy.logprobs(m.to(policy.device)) for m in batch.micro_batches)])


def _copy(policy: PolicyModel) -> list[Tensor]:
    return [p.detach().clone() for p in policy.named_parameters().values()]


@contextmanager
def _weights(policy: PolicyModel, weights: Sequence[Tensor]) -> Iterator[None]:
    """The policy with other weights for a while; its own come back as they were, bit for bit."""
    parameters = list(policy.named_parameters().values())
    own = [p.data for p in parameters]
    for parameter, other in zip(parameters, weights, strict=True):
        parameter.data = other
    try:
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data
