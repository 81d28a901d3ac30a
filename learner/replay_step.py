"""What objectives make of recorded steps: from the log-probs that the learner had, or from those of other weights.

    recording --step_of--> Step --objective--> loss, weights, what is cut       no model: the learner's own numbers
    recording --batch_of--> StepBatch --prepare, backward--> also the gradient   the weights of a checkpoint

Both take the learner's own path, on the recorded kind of device and number of threads, so that the trained objective
gives the very numbers that it gave, and a second replay gives the bytes of the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from learner.batch import StepBatch, build_step
from learner.model import PolicyModel
from learner.objective.core import Step
from learner.objective.registry import Objective, build
from learner.objective.statistics import RatioStatistics, step_statistics
from learner.objectives import Objectives
from learner.ranks import ALONE
from learner.recording import Recording
from learner.shadows import GradientComparison, ShadowOutcome, shadow_outcome
from learner.step import backward, prepare
from shared.errors import ConfigError, DecodeError, StoreError

_OWN = "the policy's own tokens alone"
_BEYOND = ("proximal_logprobs", "preceding_logprobs", "ref_logprobs", "expert", "replayed")
_REMEDY = {
    _OWN: "an expert wrote some of these; without --checkpoint it is shown on the others",
    "entropy": "give --checkpoint, which computes it",
    "proximal_logprobs": "the step is not the first of its batch, and no objective of the run needed them",
    "preceding_logprobs": "no objective of the run needed them; a shadow that does has them recorded",
    "ref_logprobs": "no objective of the run needed them; a shadow that does has them recorded",
}


@dataclass(frozen=True)
class Replayed:
    """What one objective makes of one step."""

    objective: str  # its name, with the knobs that are set
    lacks: str  # '' or what it needs and the record does not have
    outcome: ShadowOutcome | None  # None where it lacks something
    grad_norm: float | None  # None without a checkpoint


@dataclass(frozen=True)
class ReplayedStep:
    """One recorded step, replayed; `recorded` holds what the learner wrote down."""

    step: int
    epoch: int
    policy_version: int
    groups: int
    tokens: int
    staleness_max: int  # versions
    skipped: str
    offending_groups: tuple[str, ...]
    device: str
    threads: int
    token_ess: float
    sequence_ess: float
    log_ratio_abs_max: float  # nats
    recorded: dict[str, float]
    differs: dict[str, float]  # replayed - recorded of the trained objective, where they are not equal bit for bit
    objectives: tuple[Replayed, ...]  # the trained one first


def replay(recording: Recording, wanted: Sequence[Objective], policy: PolicyModel | None = None) -> ReplayedStep:
    """Replays one step.

    Args:
        recording: the step.
        wanted: the objectives to look at beside the one that was trained.
        policy: the weights to compute the log-probs of; without it, those that were recorded count.

    Raises:
        ConfigError: the record's own objective is not known any more, or the policy is of another tokenizer.
        StoreError: this version of the program cuts the groups in another way than the one that recorded them.
        DecodeError: a group cannot be read.

    """
    torch.set_num_threads(recording.threads)
    try:
        trained = build(recording.objective, recording.knobs)
    except ValueError as error:
        raise ConfigError(f"step {recording.step}: {error}") from None
    others = [objective for objective in wanted if objective.label != trained.label]
    path = _as_recorded(recording, trained, others) if policy is None else _anew(recording, trained, others, policy)
    statistics, replayed = path
    summary = statistics.summary()
    now = {name: float(value) for name, value in vars(summary).items()}
    if replayed[0].outcome is not None:  # the trained one's, which lacks nothing
        now["loss"] = replayed[0].outcome.loss
    recorded = {**recording.statistics, "loss": recording.loss}
    return ReplayedStep(
        step=recording.step,
        epoch=recording.epoch,
        policy_version=recording.policy_version,
        groups=len(recording.groups),
        tokens=summary.tokens,
        staleness_max=max(recording.staleness.values(), default=0),
        skipped=recording.skipped,
        offending_groups=recording.offending_groups(),
        device=str(device_of(recording)),
        threads=recording.threads,
        token_ess=summary.token_ess,
        sequence_ess=summary.sequence_ess,
        log_ratio_abs_max=summary.log_ratio_abs_max,
        recorded={**recorded, "grad_norm": recording.grad_norm, "learning_rate": recording.learning_rate},
        differs={n: now[n] - value for n, value in recorded.items() if n in now and not _same(now[n], value)},
        objectives=tuple(replayed),
    )


def device_of(recording: Recording) -> torch.device:
    """The kind of device that the step was taken on, if this machine has it."""
    return torch.device("cuda" if recording.device == "cuda" and torch.cuda.is_available() else "cpu")


def step_of(recording: Recording, device: torch.device) -> Step:
    """The tokens exactly as the trained objective saw them. Raises DecodeError."""
    for name in recording.tokens.keys() - Step.__dataclass_fields__.keys():
        raise DecodeError(f"tokens.{name}", "this version knows no such field of a step")
    return Step(**{name: torch.from_numpy(array).to(device) for name, array in recording.tokens.items()})


def with_derived(recording: Recording, step: Step, needs: frozenset[str]) -> Step:
    """The step with those of the needed fields that follow from the rest of the record."""
    given = {name for name, value in vars(step).items() if value is not None}
    derived = _derived(recording, step.policy_logprobs, needs - given)
    return replace(step, **{name: values.to(step.rewards.device) for name, values in derived})


def lacking(objective: Objective, step: Step) -> frozenset[str]:
    """What the objective needs and the step does not have."""
    return frozenset(name for name in objective.needs if getattr(step, name) is None)


def batch_of(recording: Recording) -> StepBatch:
    """The groups, cut as they were. Raises DecodeError, StoreError."""
    groups, rewards = recording.decoded_groups(), recording.tokens["rewards"]
    ends = np.cumsum([len(group.trajectories) for group in groups])[:-1]
    batch = build_step(groups, np.split(rewards, ends), recording.advantage, recording.micro_batch_tokens)
    for name in ("behavior_logprobs", "advantages", "sequence_of"):
        built = torch.cat([getattr(m, name) for m in batch.micro_batches]).numpy()
        if not np.array_equal(built, recording.tokens[name], equal_nan=built.dtype.kind == "f"):
            raise StoreError(
                f"step {recording.step}: its {name} are not those that its groups give, so another version of the "
                "learner recorded it: replay it without --checkpoint, or with that version"
            )
    return batch


def _as_recorded(
    recording: Recording, trained: Objective, others: Sequence[Objective]
) -> tuple[RatioStatistics, list[Replayed]]:
    """From the recorded log-probs."""
    step = step_of(recording, device_of(recording))
    full = with_derived(recording, step, _needs(others))
    own = full.drawn()
    token_loss = trained(step)
    replayed = [Replayed(trained.label, "", shadow_outcome(trained, token_loss, None, step.expert), None)]
    for objective in others:
        lacks = lacking(objective, full)
        if lacks:
            replayed.append(_lacking(objective, lacks))
        else:
            seen = full if "expert" in objective.needs else own
            outcome = shadow_outcome(objective, objective(seen), None, seen.expert)
            replayed.append(Replayed(objective.label, "", outcome, None))
    return step_statistics(step, token_loss), replayed


def _anew(
    recording: Recording, trained: Objective, others: Sequence[Objective], policy: PolicyModel
) -> tuple[RatioStatistics, list[Replayed]]:
    """From the weights of a policy, with gradients."""
    batch = batch_of(recording)
    largest = max(int(ids.max()) for m in batch.micro_batches for ids in (m.packed.ids, m.tokens))
    if largest >= policy.vocab_size:
        raise ConfigError(
            f"--checkpoint: a model of {policy.vocab_size} tokens, but step {recording.step} has token {largest}"
        )
    beyond = {name: torch.from_numpy(recording.tokens[name]) for name in _BEYOND if name in recording.tokens}
    then = torch.from_numpy(recording.tokens["policy_logprobs"])
    beyond.update(_derived(recording, then, _needs([trained, *others]) - set(beyond), batch))
    known = {*beyond, "entropy", "micro_batch_of"}
    able = [o for o in others if not o.needs - known and ("expert" in o.needs or not batch.expert.any())]
    policy.module.zero_grad(set_to_none=True)
    prepared = prepare(policy, batch, Objectives(trained, tuple(able)), beyond, ALONE)
    parameters = list(policy.named_parameters().values())
    comparison = GradientComparison(prepared.shadows, parameters)
    backward(policy, prepared, comparison)
    cosines, norms = comparison.cosines(ALONE), comparison.norms()
    norm = clip_grad_norm_(parameters, math.inf).item()
    first = Replayed(trained.label, "", shadow_outcome(trained, prepared.token_loss, None, prepared.expert), norm)
    done = {
        o.label: Replayed(o.label, "", shadow_outcome(o, token_loss, cosine, prepared.expert), norm)
        for o, token_loss, cosine, norm in zip(able, prepared.shadows, cosines, norms, strict=True)
    }
    rest = [done.get(o.label) or _lacking(o, o.needs - known or frozenset({_OWN})) for o in others]
    return prepared.statistics, [first, *rest]


def _derived(
    recording: Recording,
    policy_logprobs: Tensor,
    names: frozenset[str],
    batch: StepBatch | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Those of the named fields of `Step` that follow from the rest of the record."""
    if "proximal_logprobs" in names and recording.first_of_batch:
        yield "proximal_logprobs", policy_logprobs  # of the weights before the batch's first step: this one
    if "replayed" in names:
        yield "replayed", torch.full((len(recording.tokens["advantages"]),), recording.pass_number > 0)
    if "expert" in names:
        yield "expert", (batch or batch_of(recording)).expert


def _needs(objectives: Sequence[Objective]) -> frozenset[str]:
    return frozenset().union(*(o.needs for o in objectives))


def _lacking(objective: Objective, names: frozenset[str]) -> Replayed:
    said = [f"{name} ({_REMEDY[name]})" if name in _REMEDY else name for name in sorted(names)]
    return Replayed(objective.label, f"needs {', '.join(said)}", None, None)


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))
