"""Which entries can be trained on: pure checks, each with the reason that is counted and shown."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from learner.lineage import Lineage
from shared.codec import decode_group
from shared.errors import DecodeError
from shared.policies import Evict, Waiting, too_stale
from shared.stream import Entry
from shared.types import Group, SamplingSettings, Source, Trajectory, group_id_for

MISSING_LOGPROB = -9999.0  # what engines write for a log-prob that they do not have
MAX_LOGPROB = 1e-3  # nats; rounding may lift a certain token above 0 by less than this
NEUTRAL = SamplingSettings()
_POLICY, _ENVIRONMENT, _EXPERT = map(int, (Source.POLICY, Source.ENVIRONMENT, Source.EXPERT))
_NEUTRAL_NAMES = ("top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")

WRONG_RUN = "wrong_run"
FAILURE = "failure"


@dataclass(frozen=True)
class Refused:
    """Why an entry is not trained on."""

    reason: str  # a short word: a metric's label
    detail: str
    dead_letter: bool  # keep a copy of the entry: something is wrong with it
    group: Group | None = None  # where it could be read
    staleness: int | None = None  # versions, of its oldest token, where it is a group of this run


@dataclass(frozen=True)
class Rules:
    """What a group has to satisfy now."""

    run_id: str
    vocab_size: int
    max_tokens: int  # of a trajectory, prompt included
    max_staleness: int  # versions beyond the group's lag
    lineage: Lineage
    experts: bool = False  # the objective learns from an expert's tokens
    evict: Evict = too_stale


def foreign(entry: Entry, run_id: str) -> Refused | None:
    """Why an entry is not one of this run's at all, or None."""
    if entry.prompt_index >= 0 and entry.group_id == group_id_for(run_id, entry.prompt_index):
        return None
    return Refused(WRONG_RUN, f"group {entry.group_id!r} with index {entry.prompt_index} is not of run {run_id}", True)


def screen(entry: Entry, rules: Rules) -> Group | Refused:
    """Decodes an entry of this run and checks what is in it."""
    if entry.failure:
        return Refused(FAILURE, entry.failure, False)
    try:
        group = decode_group(entry.payload)
    except DecodeError as error:
        return Refused("undecodable", str(error), True)
    if (group.group_id, group.prompt_index) != (entry.group_id, entry.prompt_index):
        return Refused(WRONG_RUN, f"entry of {entry.group_id}, payload of {group.group_id}", True, group)
    result = _check(group, rules)
    if isinstance(result, Refused):
        return replace(result, staleness=waiting(group, rules.lineage).staleness)
    return result


def _check(group: Group, rules: Rules) -> Group | Refused:
    for i, trajectory in enumerate(group.trajectories):
        problem = _problem(trajectory, rules)
        if problem:
            return Refused(problem[0], f"trajectories[{i}]: {problem[1]}", True, group)
    if _outside(group.prompt_ids, rules.vocab_size):
        return Refused("bad_tokens", f"prompt_ids: a token is not in [0, {rules.vocab_size})", True, group)
    if not len(group.prompt_ids):
        return Refused("bad_tokens", "prompt_ids: empty, so the first token has no log-prob", True, group)
    longest = len(group.prompt_ids) + max(t.length for t in group.trajectories)
    if longest > rules.max_tokens:
        detail = f"a trajectory has {longest} tokens; learner.micro_batch_tokens ({rules.max_tokens}) must hold it"
        return Refused("too_long", detail, True, group)
    if not any(t.loss_mask.any() for t in group.own):
        return Refused("no_trained_tokens", "no token that the policy drew has loss_mask", True, group)
    return evicted(group, rules) or group


def length_and_reward(group: Group) -> tuple[float, float]:
    """Means over the policy's own completions of a group: tokens, reward."""
    own = group.own
    return sum(t.length for t in own) / len(own), sum(t.reward for t in own) / len(own)


def waiting(group: Group, lineage: Lineage) -> Waiting:
    """What policies see of a group."""
    versions = {s.policy_version for t in group.trajectories for s in t.versions}
    return Waiting(max(map(lineage.staleness, versions), default=0), group.lag)


def evicted(group: Group, rules: Rules) -> Refused | None:
    """Why the policy drops a good group now, or None."""
    seen = waiting(group, rules.lineage)
    reason = rules.evict(seen, rules.max_staleness)
    if not reason:
        return None
    allowed = f"lag {group.lag} + max_staleness {rules.max_staleness}"
    detail = f"its oldest token is {seen.staleness} versions old; allowed: {allowed}"
    return Refused(reason, detail, False, group, seen.staleness)


def _problem(t: Trajectory, rules: Rules) -> tuple[str, str] | None:
    """(reason, detail) of what is wrong with a trajectory."""
    if _outside(t.token_ids, rules.vocab_size):
        return "bad_tokens", f"token_ids: a token is not in [0, {rules.vocab_size})"
    if t.finish_reason == "abort":
        return "incomplete", "finish_reason: it was aborted"
    if not math.isfinite(t.reward):
        return "bad_reward", f"reward: {t.reward}"
    newest = max((s.policy_version for s in t.versions), default=0)
    if newest > rules.lineage.latest:
        return "newer_version", f"versions: {newest} is newer than the learner's {rules.lineage.latest}"
    return _foreign_token(t, rules.experts) or _untruth(t)


def _foreign_token(t: Trajectory, experts: bool) -> tuple[str, str] | None:
    """Which trained token is neither the policy's nor, where the objective learns from them, an expert's."""
    trained = t.source[t.loss_mask]
    if (trained == _ENVIRONMENT).any():
        return "bad_source", "source: the environment wrote a trained token"
    if not t.by_expert:
        return None
    if (trained != _EXPERT).any():
        return "bad_source", "source: the policy and an expert both wrote trained tokens of one trajectory"
    if not experts:
        return "bad_source", (
            "source: an expert wrote a trained token, and learner.objective does not learn from experts; set "
            "rollout.experts to 0, or learner.objective.name to one that does (chord)"
        )
    return None


def _untruth(t: Trajectory) -> tuple[str, str] | None:
    """Why behavior_logprobs cannot be those of the distribution that the learner recomputes."""
    sampling = _sampling_problem(t.sampling)
    if sampling:
        return "bad_sampling", f"sampling.{sampling}: the learner cannot recompute its log-probs"
    trained = t.behavior_logprobs[t.loss_mask & (t.source == _POLICY)]
    good = np.isfinite(trained) & (trained > MISSING_LOGPROB) & (trained <= MAX_LOGPROB)
    if not good.all():
        return "bad_logprobs", f"behavior_logprobs: {trained[~good][0]} on a trained token"
    return None


@lru_cache(maxsize=64)
def _sampling_problem(sampling: SamplingSettings) -> str | None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature > 0):
        return f"temperature is {sampling.temperature}"
    if sampling.top_k not in (-1, 0):
        return f"top_k is {sampling.top_k}"
    for name in _NEUTRAL_NAMES:
        if getattr(sampling, name) != getattr(NEUTRAL, name):
            return f"{name} is {getattr(sampling, name)}"
    return None


def _outside(ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]], vocab_size: int) -> bool:
    return bool(len(ids)) and bool(ids.min() < 0 or ids.max() >= vocab_size)
