"""One optimizer step: log-probs of the whole step, the objective, the gradient; or a reason why not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from learner.batch import MicroBatch, StepBatch
from learner.head import TokenOutputs
from learner.model import PolicyModel
from learner.objective.core import Step, TokenLoss, piece_loss
from learner.objective.ess import weight_sums
from learner.objective.statistics import RatioStatistics, step_statistics
from learner.objectives import Objectives
from learner.ranks import ALONE, Ranks
from learner.shadows import GradientComparison, ShadowOutcome, shadow_outcome
from learner.update import update_norm
from shared.config.learner import LearnerConfig

_PARTS = ("kl_loss", "entropy_loss", "kl_weight")  # of what an objective says of itself


@dataclass(frozen=True)
class Floor:
    """The log ratios of tokens that were drawn by the very weights: what staleness has no part in."""

    max_nats: float  # largest |log ratio|
    mean_nats: float  # mean |log ratio|
    token_ess: float


@dataclass(frozen=True)
class StepOutcome:
    """What a step did. NaN where it was skipped before the number existed."""

    skipped: str  # '' or the reason why the weights did not change
    own: Step  # the tokens of this rank, as the objective saw them
    weight: Tensor  # [n] of these tokens: what multiplied advantage * grad log policy
    cut: Tensor  # [n] bool of these tokens: clipped, capped or masked
    statistics: RatioStatistics  # of the whole step, over all ranks
    floor: Floor | None  # of the tokens that these very weights drew; None if none
    loss: float
    loss_kl: float  # the part of it that pulls to the behavior policy or a reference
    loss_entropy: float  # the part that rewards entropy
    kl_weight: float  # mean weight of the pull
    entropy_mean: float | None  # nats; None where nobody asked for it
    grad_norm: float
    update_norm: float | None  # L2 of what the optimizer changed; None where it changed nothing
    learning_rate: float
    shadows: tuple[ShadowOutcome, ...]
    seconds: float
    prepass_s: float  # of these: forward passes that served the statistics alone


def make_optimizer(policy: PolicyModel, config: LearnerConfig) -> torch.optim.Optimizer:
    """The configured optimizer over every weight of the policy."""
    weights, rate, decay = policy.named_parameters().values(), config.learning_rate, config.weight_decay
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(weights, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(weights, lr=rate, betas=config.betas, weight_decay=decay, fused=True)


def learning_rate(config: LearnerConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (the first is 1)."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = min(1.0, (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
    return config.learning_rate * factor[config.schedule]


@dataclass(frozen=True)
class Prepared:
    """What is known of a step before its first backward pass."""

    micro_batches: list[MicroBatch]  # of this rank
    known: list[TokenOutputs]  # of each, without gradient
    last: TokenOutputs | None  # of the last micro-batch, with gradient: its one forward pass serves both phases
    own: Step  # the tokens of this rank
    expert: Tensor | None  # which tokens of all ranks an expert wrote
    mine: slice  # where they stand among the tokens of all ranks
    token_loss: TokenLoss  # of the tokens of all ranks
    entropy_mean: Tensor | None  # [], nats, over the tokens that no expert wrote, of all ranks
    shadows: list[TokenLoss]
    statistics: RatioStatistics
    prepass_s: float  # taken by forward passes that serve the statistics alone


def prepare(
    policy: PolicyModel, batch: StepBatch, objectives: Objectives, beyond: Mapping[str, Tensor], ranks: Ranks
) -> Prepared:
    """The first phase: log-probs of the whole step, and what the objectives make of them."""
    micro_batches = [m.to(policy.device) for m in batch.micro_batches]
    entropy, started = "entropy" in objectives.needs, time.monotonic()
    with torch.inference_mode():
        outputs = [policy.outputs(m, entropy=entropy) for m in micro_batches[:-1]]
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)
    prepass_s = time.monotonic() - started if len(micro_batches) > 1 else 0.0
    outputs += [policy.outputs(m, entropy=entropy) for m in micro_batches[-1:]]
    known = [o.detach() for o in outputs]
    own = step_tokens(batch, micro_batches, _joined(policy, known, entropy=entropy), beyond)
    tokens, mine = ranks.gather(own)
    token_loss = objectives.trained(tokens)
    return Prepared(
        micro_batches=micro_batches,
        known=known,
        last=outputs[-1] if outputs else None,
        own=own,
        expert=tokens.expert,
        mine=mine,
        token_loss=token_loss,
        entropy_mean=None if (entropies := tokens.drawn().entropy) is None else entropies.mean(),
        shadows=[shadow(tokens) for shadow in objectives.shadows],
        statistics=step_statistics(tokens, token_loss),
        prepass_s=prepass_s,
    )


def take_step(
    policy: PolicyModel,
    optimizer: torch.optim.Optimizer,
    batch: StepBatch,
    objectives: Objectives,
    config: LearnerConfig,
    step: int,
    *,
    beyond: Mapping[str, Tensor] | None = None,
    drawn_by: int | None = None,
    ranks: Ranks = ALONE,
) -> StepOutcome:
    """Updates the policy, unless anything on the way is not finite: then the weights stay as they are.

    Args:
        policy: the weights to update.
        optimizer: over the policy's weights.
        batch: this rank's groups; may be without a token where another rank has some.
        objectives: what is minimized, and what is only looked at.
        config: the learner's section: learning rate, clipping, how often gradients are compared.
        step: number of this step, from 1.
        beyond: fields of `Step` that the batch does not have, by name: [n] each, in the order of the micro-batches.
        drawn_by: the version that has exactly the policy's weights now, if any; tokens that it drew show the
            numerics floor.
        ranks: the processes that take this step together.

    """
    started = time.monotonic()
    optimizer.zero_grad(set_to_none=True)
    prepared = prepare(policy, batch, objectives, beyond or {}, ranks)
    parameters = list(policy.named_parameters().values())
    every = config.shadow_gradients_every
    comparison = GradientComparison(prepared.shadows, parameters) if every and step % every == 0 else None
    rate = learning_rate(config, step) * float(prepared.token_loss.step_factor)
    loss, norm, changed = prepared.token_loss.loss.item(), math.nan, None
    skipped = _not_finite(prepared.statistics, loss, rate)
    if not skipped:
        backward(policy, prepared, comparison)
        ranks.sum_gradients(parameters)
        norm = clip_grad_norm_(parameters, config.max_grad_norm).item()
        skipped = "" if math.isfinite(norm) else f"non-finite gradient (norm {norm})"
    if skipped:
        optimizer.zero_grad(set_to_none=True)
    else:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        changed = update_norm(optimizer)
    said = {name: value.item() for name, value in prepared.token_loss.statistics.items() if name in _PARTS}
    cosines = comparison.cosines(ranks) if comparison and not skipped else [None] * len(prepared.shadows)
    return StepOutcome(
        skipped=skipped,
        own=prepared.own,
        weight=prepared.token_loss.weight[prepared.mine],
        cut=prepared.token_loss.cut[prepared.mine],
        statistics=prepared.statistics,
        floor=_floor(prepared.own.log_ratio, batch, drawn_by),
        loss=loss,
        loss_kl=said.get("kl_loss", 0.0),
        loss_entropy=said.get("entropy_loss", 0.0),
        kl_weight=said.get("kl_weight", 0.0),
        entropy_mean=None if prepared.entropy_mean is None else prepared.entropy_mean.item(),
        grad_norm=norm,
        update_norm=changed,
        learning_rate=rate,
        shadows=tuple(
            shadow_outcome(shadow, token_loss, cosine, prepared.expert)
            for shadow, token_loss, cosine in zip(objectives.shadows, prepared.shadows, cosines, strict=True)
        ),
        seconds=time.monotonic() - started,
        prepass_s=prepared.prepass_s,
    )


def _not_finite(statistics: RatioStatistics, loss: float, rate: float) -> str:
    """What of these is not finite, or ''."""
    if not torch.isfinite(statistics.token_ess):
        return f"non-finite ESS ({statistics.token_ess.item()})"
    if not math.isfinite(loss) or not math.isfinite(rate):
        return f"non-finite loss ({loss}) or learning rate ({rate})"
    return ""


def step_tokens(
    batch: StepBatch, micro_batches: Sequence[MicroBatch], outputs: TokenOutputs, beyond: Mapping[str, Tensor]
) -> Step:
    """What an objective sees: all trained tokens of the step, in the order of the micro-batches."""
    device = outputs.logprobs.device
    sizes = torch.tensor([m.trained_tokens for m in micro_batches], device=device, dtype=torch.int64)
    return Step(
        policy_logprobs=outputs.logprobs,
        behavior_logprobs=_concatenated([m.behavior_logprobs for m in micro_batches], outputs.logprobs),
        advantages=_concatenated([m.advantages for m in micro_batches], outputs.logprobs),
        sequence_of=_concatenated([m.sequence_of for m in micro_batches], sizes),
        group_of=batch.group_of.to(device),
        rewards=torch.from_numpy(batch.rewards).to(device),
        micro_batch_of=torch.arange(len(micro_batches), device=device).repeat_interleave(sizes),
        entropy=outputs.entropy,
        **{name: values.to(device) for name, values in beyond.items()},
    )


def _joined(policy: PolicyModel, outputs: Sequence[TokenOutputs], *, entropy: bool) -> TokenOutputs:
    """Of all micro-batches, in one; in the precision of the weights on a rank that has none."""
    like = next(iter(policy.named_parameters().values()))
    entropies = [o.entropy for o in outputs if o.entropy is not None]
    logprobs = _concatenated([o.logprobs for o in outputs], like)
    return TokenOutputs(logprobs, _concatenated(entropies, like) if entropy else None)


def _concatenated(pieces: Sequence[Tensor], like: Tensor) -> Tensor:
    """The pieces in one, in the wider of their dtype and that one's: the same on a rank that has no piece."""
    return torch.cat([like.new_empty(0), *pieces])


def backward(policy: PolicyModel, prepared: Prepared, comparison: GradientComparison | None) -> None:
    """The second phase: accumulates the gradient of this rank's part of the step's loss.

    It begins with the last micro-batch, whose graph waits; no other one is held at the same time.
    """
    end, outputs = prepared.mine.stop, prepared.last
    for m, known in zip(reversed(prepared.micro_batches), reversed(prepared.known), strict=True):
        outputs = outputs or policy.outputs(m, entropy=known.entropy is not None, known=known)
        tokens = slice(end - m.trained_tokens, end)
        if comparison:
            comparison.add(tokens, outputs.logprobs, outputs.entropy)
        piece_loss(prepared.token_loss, tokens, outputs.logprobs, outputs.entropy).backward()
        end, outputs = tokens.start, None


def _floor(log_ratio: Tensor, batch: StepBatch, drawn_by: int | None) -> Floor | None:
    fresh = torch.from_numpy(batch.versions == drawn_by) if drawn_by is not None else None
    if fresh is None or not fresh.any():
        return None
    of_fresh = log_ratio[fresh.to(log_ratio.device)]
    size = of_fresh.abs()
    return Floor(size.max().item(), size.double().mean().item(), weight_sums(of_fresh).ess.item())
