"""How the run is doing, at a glance."""

from __future__ import annotations

from deploy.grafana.panels import Board, panel

BOARD = Board(
    "trustbatch-overview",
    "trustbatch: overview",
    "Is the run going on, does it learn, how far can its data be trusted?",
    (
        (
            "Now",
            (
                panel(
                    "Phase",
                    "none",
                    "What the run does: starting, running, paused, finished, failed or stopped.",
                    ("max by (phase) (trustbatch_run_phase) == 1", "{{phase}}"),
                    kind="number",
                    width=4,
                ),
                panel(
                    "Step",
                    "none",
                    "Optimizer steps in this lineage.",
                    ("max(trustbatch_step)", "step"),
                    kind="number",
                    width=4,
                ),
                panel(
                    "Token ESS",
                    "percentunit",
                    "Effective sample size of the newest step over its tokens: the share of the batch that counts.",
                    ("max(trustbatch_token_ess)", "token ESS"),
                    kind="number",
                    width=4,
                ),
                panel(
                    "Since the newest step",
                    "s",
                    "Seconds since an optimizer step was recorded, by the control plane.",
                    ("time() - max(trustbatch_last_step_timestamp_seconds)", "since"),
                    kind="number",
                    width=4,
                ),
                panel(
                    "Living processes",
                    "none",
                    "Processes of the run that send heartbeats, by kind.",
                    ("max by (kind) (trustbatch_members)", "{{kind}}"),
                    kind="number",
                    width=4,
                ),
                panel(
                    "Alerts",
                    "none",
                    "Alerts that fire now; deploy/docs/runbook.md says what to do about each.",
                    ('count(ALERTS{alertname=~"Trustbatch.+", alertstate="firing"}) or vector(0)', "firing"),
                    kind="number",
                    width=4,
                ),
            ),
        ),
        (
            "Learning",
            (
                panel(
                    "Reward",
                    "none",
                    "Mean reward of the trajectories of each step.",
                    ("max(trustbatch_reward_mean)", "reward"),
                ),
                panel(
                    "Completion length",
                    "none",
                    "Mean length of a completion, tokens.",
                    ("max(trustbatch_completion_tokens_mean)", "tokens"),
                ),
                panel(
                    "Groups with a signal",
                    "percentunit",
                    "Share of groups of unequal rewards, and share of completions cut by max_tokens.",
                    ("max(trustbatch_signal_share)", "unequal rewards"),
                    ("max(trustbatch_truncated_share)", "cut"),
                ),
            ),
        ),
        (
            "Trust",
            (
                panel(
                    "Effective sample size",
                    "percentunit",
                    "Over tokens, and over completions each with the ratio of the whole completion.",
                    ("max(trustbatch_token_ess)", "token ESS"),
                    ("max(trustbatch_sequence_ess)", "sequence ESS"),
                ),
                panel(
                    "Staleness",
                    "none",
                    "Versions between drawing a token and training on it, and the part that was asked for.",
                    ("max(trustbatch_staleness_mean_versions)", "mean"),
                    ("max(trustbatch_staleness_max_versions)", "max"),
                    ("max(trustbatch_staleness_lag_mean_versions)", "lag"),
                ),
                panel(
                    "Versions",
                    "none",
                    "The newest published version and the one that each rollout server serves; -1: none.",
                    ("max(trustbatch_latest_policy_version)", "newest"),
                    ("trustbatch_rollout_policy_version", "{{instance}}"),
                ),
            ),
        ),
        (
            "Pace",
            (
                panel(
                    "Tokens",
                    "short",
                    "Tokens drawn and tokens trained on, a second.",
                    ("sum(rate(trustbatch_rollout_tokens_total[$__rate_interval]))", "drawn"),
                    ("sum(rate(trustbatch_tokens_trained_total[$__rate_interval]))", "trained"),
                ),
                panel(
                    "Steps",
                    "short",
                    "Optimizer steps a minute.",
                    ("60 * sum(rate(trustbatch_steps_total[$__rate_interval]))", "steps / min"),
                ),
                panel(
                    "The learner's time",
                    "percentunit",
                    "Shares of its time that the learner waits for groups, computes and publishes.",
                    ("sum(rate(trustbatch_learner_wait_seconds_total[$__rate_interval]))", "waits"),
                    ("sum(rate(trustbatch_step_seconds_sum[$__rate_interval]))", "computes"),
                    ("sum(rate(trustbatch_publish_seconds_sum[$__rate_interval]))", "publishes"),
                ),
            ),
        ),
    ),
)
