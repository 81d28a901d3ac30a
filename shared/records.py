"""One row of history for every optimizer step: what the dashboard, the terminal, the plot and the metrics show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MOST_LABELS = 32  # servers, or environments, with numbers of their own in one step: those with the most groups
OTHERS = "others"


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step saw and did. Means are over trained tokens unless said otherwise."""

    step: int  # after this many optimizer steps
    policy_version: int  # the learner's latest published version when it consumed the batch
    at: float  # unix seconds
    groups: int
    prompt_indices: list[int]  # of the groups whose last pass this step was: the lineage's record
    trajectories: int  # the policy's own; an expert's have no part in the next four
    tokens: int  # trained
    computed_tokens: int  # that the model computed in a pass: prompts too, each once in a micro-batch
    micro_batches: int
    packing_efficiency: float  # computed tokens / (micro-batches x learner.micro_batch_tokens)
    reward_mean: float  # over trajectories
    signal_share: float  # share of groups with unequal rewards
    length_mean: float  # tokens of a completion
    truncated_share: float  # completions cut by max_tokens
    token_ess: float  # over tokens, in [1/n, 1]
    sequence_ess: float  # over completions, each with its whole ratio
    log1m_token_ess: float  # log(1 - token_ess): still says something where token_ess reads 1.00
    chi2: float  # 1/token_ess - 1, estimate of chi2(policy || behavior)
    ratio_min: float
    ratio_p1: float
    ratio_p50: float
    ratio_p99: float
    ratio_max: float
    log_ratio_abs_max: float  # nats
    largest_weight_share: float  # largest ratio / sum of all
    top_1_percent_mass: float  # sum of the largest hundredth of the ratios / sum of all
    kl: float  # nats, unbiased estimate of KL(policy || behavior)
    k1: float  # nats, mean of -log_ratio
    k2: float  # nats, mean of log_ratio^2 / 2
    k3: float  # nats, mean of log_ratio + 1/ratio - 1
    log_ratio_counts: list[int]  # of these tokens between the edges of `shared.histogram.LOG_RATIO_EDGES`
    capped_share: float  # tokens that the objective capped, clipped or masked
    weight_lost: float  # what it took off the ratios of those / sum of all ratios
    zero_weight_share: float  # tokens without a score term
    kl_weight: float  # mean weight of the pull to the behavior policy (or a reference); 0 where there is none
    entropy_mean: float | None  # nats, of the policy; None where it was not computed
    staleness_mean: float  # versions
    staleness_max: int  # versions
    lag_mean: float  # versions: the part of staleness that was asked for
    lag_max: int
    flight_mean: float  # versions: the part beyond it that came between drawing a token and appending its group
    flight_max: int
    queue_mean: float  # versions: the part that came between appending and training
    queue_max: int
    lags: dict[str, int]  # groups by the lag that was asked for, in versions; those of the control arm as "control"
    floor_max_nats: float | None  # largest |policy - behavior| on staleness-0 tokens before the update; None if none
    floor_mean_nats: float | None  # their mean |policy - behavior|
    floor_token_ess: float | None  # ESS over them
    engine_nats: float | None  # on a sample: mean |learner at the version that drew it - engine|; None: none taken
    drift_nats: float | None  # on the same tokens: mean |learner now - learner at that version|
    split_staleness: int | None  # versions, of that sample
    loss: float
    loss_score: float  # the part of it with the advantages
    loss_kl: float  # the part that pulls to the behavior policy or a reference
    loss_entropy: float  # the part that rewards entropy
    grad_norm: float
    update_norm: float | None  # L2 of the weights' change; None: they did not change, or it is not known
    learning_rate: float
    settings: dict[str, float]  # that operators may change: max_staleness, max_bytes, learning_rate_factor, knobs
    skipped: str  # '' or why no optimizer step was taken
    wait_s: float  # waited for groups
    compute_s: float  # forward, backward, optimizer
    prepass_s: float  # of these: forward passes that served the step's statistics alone
    publish_s: float
    busy_share: float | None  # compute_s / seconds since the step before; None for the first after a start
    wait_share: float | None  # wait_s / the same
    backlog_groups: int | None  # in the stream when the batch was taken, not yet applied; None: not looked at yet
    backlog_bytes: int | None  # of all groups in Redis
    backlog_oldest_s: float | None  # since the oldest group not yet applied was appended; None where there is none
    backlog_drain_s: float | None  # how long they last at the pace of the newest steps
    by_staleness: dict[
        str, dict[str, float]
    ]  # the ratios' statistics of each bucket of versions: 0, 1, 2, 3-4, 5-8 ...
    by_environment: dict[str, dict[str, float]]  # the same of each environment
    by_server: dict[str, dict[str, float]]  # of each rollout server; beyond `MOST_LABELS` they are OTHERS
    by_position: dict[str, dict[str, float]]  # of positions in the completion: 0-15, 16-63, 64-255, 256-1023, 1024+
    by_arm: dict[str, dict[str, float]]  # ratios, rewards and lengths of each arm: control, lag 0, lag 1, lag 3-4 ...
    shadows: list[dict[str, Any]]  # what other objectives would have done with the step


@dataclass(frozen=True)
class Dropped:
    """A group that ended without being trained on: kept in the history, counted by reason."""

    prompt_index: int  # -1 where the entry has none of this run
    reason: str  # a short word, as in the metric
    length_mean: float | None  # tokens; None where the group could not be read
    reward_mean: float | None
    at: float  # unix seconds
    detail: str = ""  # what exactly was wrong
    staleness: int | None = None  # versions, of its oldest token; None where the group could not be read
    lag: int | None = None  # versions, as asked for
