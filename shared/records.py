"""One row of history for every optimizer step: what the dashboard, the terminal, the plot and the metrics show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step saw and did. Means are over trained tokens unless said otherwise."""

    step: int  # after this many optimizer steps
    policy_version: int  # the learner's latest published version when it consumed the batch
    at: float  # unix seconds
    groups: int
    prompt_indices: list[int]  # of the groups whose last pass this step was: the lineage's record
    trajectories: int
    tokens: int  # trained
    reward_mean: float  # over trajectories
    signal_share: float  # share of groups with unequal rewards
    length_mean: float  # tokens of a completion
    truncated_share: float  # completions cut by max_tokens
    token_ess: float  # over tokens, in [1/n, 1]
    sequence_ess: float  # over completions, each with its whole ratio
    ratio_max: float
    ratio_min: float
    log_ratio_abs_max: float  # nats
    kl: float  # nats, estimate of KL(policy || behavior)
    capped_share: float  # tokens whose ratio is at or above the cap
    staleness_mean: float  # versions
    staleness_max: int  # versions
    floor_max_nats: float | None  # largest |policy - behavior| on staleness-0 tokens before the update; None if none
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: str  # '' or why no optimizer step was taken
    wait_s: float  # waited for groups
    compute_s: float  # forward, backward, optimizer
    publish_s: float


@dataclass(frozen=True)
class Dropped:
    """A group that ended without being trained on: kept in the history, counted by reason."""

    prompt_index: int  # -1 where the entry has none of this run
    reason: str  # a short word, as in the metric
    length_mean: float | None  # tokens; None where the group could not be read
    reward_mean: float | None
    at: float  # unix seconds
    detail: str = ""  # what exactly was wrong
