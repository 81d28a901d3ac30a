"""How far the data may be trusted, and what the weight of a batch lies on."""

from __future__ import annotations

from deploy.grafana.panels import Board, panel

BOARD = Board(
    "trustbatch-ratio-health",
    "trustbatch: ratio health",
    "How far the data may be trusted, and where trust is lost: staleness, servers, tails, or the engine itself.",
    (
        (
            "Effective sample size",
            (
                panel(
                    "log(1 - token ESS)",
                    "none",
                    "Moves while ESS still reads 1.00. Floor: engine and learner on the same weights; "
                    "usual: the median of the last hour.",
                    ("max(trustbatch_log1m_token_ess > -50)", "now"),
                    ("max(trustbatch:log1m_token_ess:floor)", "floor"),
                    ("max(trustbatch:log1m_token_ess:usual > -50)", "usual"),
                ),
                panel(
                    "Way from the floor to nothing",
                    "percentunit",
                    "0: as good as engine and learner agree; 1: none of the weight is left. Alert: above .95.",
                    ("max(trustbatch:ess_collapse:ratio)", "used"),
                ),
                panel(
                    "Token and sequence ESS",
                    "percentunit",
                    "Over tokens, and over completions each with the ratio of the whole completion.",
                    ("max(trustbatch_token_ess)", "tokens"),
                    ("max(trustbatch_sequence_ess)", "sequences"),
                ),
                panel(
                    "Token ESS by staleness",
                    "percentunit",
                    "Effective sample size of the tokens of each staleness, versions.",
                    ("max by (versions) (trustbatch_staleness_token_ess)", "{{versions}}"),
                ),
                panel(
                    "Tokens by staleness",
                    "short",
                    "Trained tokens of the newest step in each bucket of staleness, versions.",
                    ("max by (versions) (trustbatch_staleness_tokens)", "{{versions}}"),
                ),
                panel(
                    "Token ESS by arm",
                    "percentunit",
                    "Effective sample size by the lag that was asked for; the control arm has lag 0.",
                    ("max by (arm) (trustbatch_arm_token_ess)", "{{arm}}"),
                ),
                panel(
                    "Token ESS by server",
                    "percentunit",
                    "Effective sample size of the tokens that each server drew, in the newest step.",
                    ("max by (server) (trustbatch_server_token_ess)", "{{server}}"),
                ),
                panel(
                    "Weight by server",
                    "percentunit",
                    "Share of the step's weight (sum of ratios) that each server's tokens carry.",
                    ("max by (server) (trustbatch_server_weight_share)", "{{server}}"),
                ),
                panel(
                    "Token ESS by position",
                    "percentunit",
                    "Effective sample size by the token's position in its completion.",
                    ("max by (tokens) (trustbatch_position_token_ess)", "{{tokens}}"),
                ),
            ),
        ),
        (
            "Ratios",
            (
                panel(
                    "Ratio policy / behavior",
                    "none",
                    "Smallest, 1 %, median, 99 % and largest ratio of a token.",
                    ("max(trustbatch_ratio_min)", "min"),
                    ("max(trustbatch_ratio_p1)", "1 %"),
                    ("max(trustbatch_ratio_p50)", "median"),
                    ("max(trustbatch_ratio_p99)", "99 %"),
                    ("max(trustbatch_ratio_max)", "max"),
                    kind="log lines",
                ),
                panel(
                    "Concentration",
                    "percentunit",
                    "Share of all weight that one token carries, and that the heaviest hundredth carries.",
                    ("max(trustbatch_largest_weight_share)", "one token"),
                    ("max(trustbatch_top_1_percent_mass)", "heaviest 1 %"),
                ),
                panel(
                    "Cut",
                    "percentunit",
                    "Share of tokens that the objective capped, clipped or masked, and share without a score term.",
                    ("max(trustbatch_capped_share)", "capped"),
                    ("max(trustbatch_zero_weight_share)", "no weight"),
                ),
                panel(
                    "Divergence from the behavior policy",
                    "none",
                    "Estimates of KL(policy || behavior) a token, nats, and chi2.",
                    ("max(trustbatch_kl_nats)", "KL, unbiased"),
                    ("max(trustbatch_k1_nats)", "k1"),
                    ("max(trustbatch_k2_nats)", "k2"),
                    ("max(trustbatch_k3_nats)", "k3"),
                    ("max(trustbatch_chi2)", "chi2"),
                ),
                panel(
                    "Log ratio of every token",
                    "none",
                    "Tokens by policy - behavior, nats.",
                    ("sum by (le) (increase(trustbatch_log_ratio_nats_bucket[$__rate_interval]))", "{{le}}"),
                    kind="heatmap",
                ),
                panel(
                    "Largest |log ratio|",
                    "none",
                    "Of a token of the step, nats.",
                    ("max(trustbatch_log_ratio_abs_max_nats)", "nats"),
                    kind="log lines",
                ),
                panel(
                    "Numerics floor",
                    "none",
                    "Engine against learner on the same weights, nats: mean and largest of each probe, "
                    "largest of the batch at staleness 0.",
                    ("trustbatch_rollout_numerics_floor_mean_nats", "mean {{instance}}"),
                    ("trustbatch_rollout_numerics_floor_max_nats", "max {{instance}}"),
                    ("max(trustbatch_numerics_floor_max_nats)", "batch"),
                    kind="log lines",
                ),
                panel(
                    "Engine and drift",
                    "none",
                    "Mean |log ratio| of a sample, nats: engine against the learner at that version, learner since.",
                    ("max(trustbatch_engine_nats)", "engine"),
                    ("max(trustbatch_drift_nats)", "drift"),
                    kind="log lines",
                ),
                panel(
                    "What is taken off, what pulls back",
                    "none",
                    "Share of all weight that the objective took off the ratios, and mean weight of its pull.",
                    ("max(trustbatch_weight_lost)", "taken off"),
                    ("max(trustbatch_kl_weight)", "pull"),
                ),
                panel(
                    "Entropy",
                    "none",
                    "Mean entropy of the policy, nats; 0 where it is not computed.",
                    ("max(trustbatch_entropy_mean_nats)", "entropy"),
                ),
            ),
        ),
        (
            "Staleness",
            (
                panel(
                    "Parts of staleness",
                    "none",
                    "Mean versions: lag (asked for), flight (until the append), queue (until the step).",
                    ("max(trustbatch_staleness_lag_mean_versions)", "lag"),
                    ("max(trustbatch_staleness_flight_mean_versions)", "flight"),
                    ("max(trustbatch_staleness_queue_mean_versions)", "queue"),
                ),
                panel(
                    "Beyond what was asked",
                    "none",
                    "Mean staleness beyond the lag, and the credit that bounds it, versions.",
                    (
                        "max(trustbatch_staleness_mean_versions) - max(trustbatch_staleness_lag_mean_versions)",
                        "beyond the lag",
                    ),
                    ("max(trustbatch_staleness_credit_versions)", "credit"),
                ),
                panel(
                    "Staleness of every token",
                    "none",
                    "Trained tokens by versions of staleness.",
                    ("sum by (le) (increase(trustbatch_staleness_versions_bucket[$__rate_interval]))", "{{le}}"),
                    kind="heatmap",
                ),
            ),
        ),
        (
            "What is made of it",
            (
                panel(
                    "Loss",
                    "none",
                    "The objective's value and its parts: advantages, pull and entropy.",
                    ("max(trustbatch_loss)", "loss"),
                    ("max(trustbatch_loss_score)", "score"),
                    ("max(trustbatch_loss_kl)", "pull"),
                    ("max(trustbatch_loss_entropy)", "entropy"),
                ),
                panel(
                    "Gradient and update",
                    "none",
                    "Norm of the gradient before clipping, and of the weights' change.",
                    ("max(trustbatch_grad_norm)", "gradient"),
                    ("max(trustbatch_update_norm)", "update"),
                    kind="log lines",
                ),
                panel(
                    "Reward by arm",
                    "none",
                    "Mean reward by the lag that was asked for.",
                    ("max by (arm) (trustbatch_arm_reward_mean)", "{{arm}}"),
                ),
                panel(
                    "Shadows: ESS of the weights",
                    "percentunit",
                    "What other objectives would have made of the same batch: effective sample size of their weights.",
                    ("max by (objective) (trustbatch_shadow_weight_ess)", "{{objective}}"),
                    width=12,
                    unless="learner.shadows names objectives",
                ),
                panel(
                    "Shadows: cut",
                    "percentunit",
                    "Share of tokens that they would have clipped, capped or masked.",
                    ("max by (objective) (trustbatch_shadow_cut_share)", "{{objective}}"),
                    width=12,
                    unless="learner.shadows names objectives",
                ),
            ),
        ),
    ),
)
