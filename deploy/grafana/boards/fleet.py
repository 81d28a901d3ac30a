"""The rollout servers: how many, what each draws, what it waits for."""

from __future__ import annotations

from deploy.grafana.panels import Board, panel, quantiles

BOARD = Board(
    "trustbatch-fleet",
    "trustbatch: fleet",
    "The rollout servers: how many there are and could be used, what each draws, serves and waits for.",
    (
        (
            "Who is there",
            (
                panel(
                    "Rollout servers",
                    "none",
                    "Living ones, and how many the learner could use.",
                    ('max(trustbatch_members{kind="rollout"})', "alive"),
                    ("max(trustbatch_desired_rollout_servers)", "wanted"),
                ),
                panel(
                    "Answering Prometheus",
                    "none",
                    "1: the process was scraped.",
                    (
                        'up{job=~"learner|rollout|control-plane|.+/trustbatch", namespace=~"$namespace"}',
                        "{{job}} {{instance}}",
                    ),
                ),
                panel(
                    "Requests to the control plane",
                    "reqps",
                    "A second, by status.",
                    ("sum by (status) (rate(trustbatch_http_requests_total[$__rate_interval]))", "{{status}}"),
                ),
            ),
        ),
        (
            "What they draw",
            (
                panel(
                    "Groups",
                    "short",
                    "Groups a second that Redis acknowledged, of each server.",
                    ("rate(trustbatch_rollout_groups_total[$__rate_interval])", "{{instance}}"),
                ),
                panel(
                    "Tokens",
                    "short",
                    "Tokens a second drawn for training, by each server.",
                    ("rate(trustbatch_rollout_tokens_total[$__rate_interval])", "{{instance}}"),
                ),
                panel(
                    "Groups in flight",
                    "none",
                    "Groups being generated, on each server.",
                    ("trustbatch_rollout_groups_in_flight", "{{instance}}"),
                ),
                panel(
                    "Time for a group",
                    "s",
                    "From a prompt to its scored group: median and 95 %.",
                    *quantiles("trustbatch_rollout_group_seconds"),
                ),
                panel(
                    "Waiting",
                    "percentunit",
                    "Share of its time that a server has room and gets no prompts, by what it waits for.",
                    ("avg by (reason) (rate(trustbatch_rollout_wait_seconds_total[$__rate_interval]))", "{{reason}}"),
                ),
                panel(
                    "Busy",
                    "percentunit",
                    "Share of the last minute with groups in flight and the engine not paused.",
                    ("trustbatch_rollout_busy_share", "{{instance}}"),
                ),
                panel(
                    "Groups drawn again",
                    "short",
                    "Groups a minute given back after a failure, by reason.",
                    (
                        "60 * sum by (reason) (rate(trustbatch_rollout_groups_retried_total[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    unless="an environment or engine failed",
                ),
                panel(
                    "Appends sent again",
                    "short",
                    "A minute, their first answer being lost.",
                    (
                        "60 * sum(rate(trustbatch_rollout_appends_resent_total[$__rate_interval]))",
                        "appends",
                    ),
                ),
                panel(
                    "Discarded groups",
                    "short",
                    "Generated groups a minute that were not appended, by reason.",
                    (
                        "60 * sum by (reason) (rate(trustbatch_rollout_groups_discarded_total[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    unless="a group was discarded",
                ),
            ),
        ),
        (
            "What they serve",
            (
                panel(
                    "Version",
                    "none",
                    "The version that each server serves, proven; -1: none.",
                    ("trustbatch_rollout_policy_version", "{{instance}}"),
                ),
                panel(
                    "Lag",
                    "none",
                    "Versions behind the newest, as asked and as served.",
                    ("trustbatch_rollout_lag_asked_versions", "asked {{instance}}"),
                    ("trustbatch_rollout_lag_served_versions", "served {{instance}}"),
                ),
                panel(
                    "Failures of the environment",
                    "short",
                    "Scorer and environment failures a minute, by reason.",
                    (
                        "60 * sum by (reason) (rate(trustbatch_environment_failures_total[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    unless="an environment failed",
                ),
            ),
        ),
    ),
)
