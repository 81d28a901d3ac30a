"""Groups between servers and learner: how many wait, what leaves without being trained on, what Redis holds."""

from __future__ import annotations

from deploy.grafana.panels import Board, Query, mean, panel

BOARD = Board(
    "trustbatch-stream",
    "trustbatch: stream",
    "Groups between servers and learner: how many wait, what leaves without being trained on, what Redis holds.",
    (
        (
            "Backlog",
            (
                panel(
                    "Groups",
                    "short",
                    "In the stream, applied or not (kept until a checkpoint frees them), and those not yet applied.",
                    ("max(trustbatch_stream_groups)", "in the stream"),
                    ("max(trustbatch_backlog_groups)", "not yet applied"),
                ),
                panel(
                    "Bytes",
                    "bytes",
                    "Payload in the stream, and the byte credit (admission.max_bytes).",
                    ("max(trustbatch_stream_bytes)", "in the stream"),
                    ("max(trustbatch_stream_limit_bytes)", "credit"),
                ),
                panel(
                    "Redis",
                    "bytes",
                    "Memory in use and maxmemory (0: none).",
                    ("max(trustbatch_redis_memory_bytes)", "in use"),
                    ("max(trustbatch_redis_memory_limit_bytes)", "maxmemory"),
                ),
                panel(
                    "Age of the backlog",
                    "s",
                    "Since the oldest group that was never read was appended, and how long the backlog lasts.",
                    ("max(trustbatch_backlog_oldest_seconds)", "oldest"),
                    ("max(trustbatch_backlog_drain_seconds)", "lasts"),
                ),
                panel(
                    "Outages of Redis",
                    "none",
                    "Since each process' start: times that Redis was away, commands sent again, things left untold.",
                    ("sum(trustbatch_redis_outages_total)", "outages"),
                    ("sum(trustbatch_redis_retries_total)", "sent again"),
                    ("sum(trustbatch_redis_left_out_total)", "left untold"),
                ),
                panel(
                    "Since the newest step",
                    "s",
                    "Seconds since an optimizer step was recorded, by the control plane.",
                    ("time() - max(trustbatch_last_step_timestamp_seconds)", "since"),
                ),
            ),
        ),
        (
            "Flow",
            (
                panel(
                    "Groups in and out",
                    "short",
                    "A second: appended, applied and dropped.",
                    ("sum(rate(trustbatch_rollout_groups_total[$__rate_interval]))", "appended"),
                    ("sum(rate(trustbatch_groups_applied_total[$__rate_interval]))", "applied"),
                    ("sum(rate(trustbatch_groups_dropped_total[$__rate_interval])) or vector(0)", "dropped"),
                ),
                panel(
                    "The learner waits",
                    "percentunit",
                    "Share of its time that it waits for groups, over ten minutes. An alert fires above one half.",
                    ("max(trustbatch:learner_wait:ratio)", "waits"),
                ),
                panel(
                    "Credit",
                    "none",
                    "Versions that rollout servers may be ahead of training.",
                    ("max(trustbatch_staleness_credit_versions)", "versions"),
                ),
            ),
        ),
        (
            "What leaves without being trained on",
            (
                panel(
                    "Dropped",
                    "percentunit",
                    "Share of all groups, by reason.",
                    ("max by (reason) (trustbatch:groups_dropped:ratio)", "{{reason}}"),
                    unless="a group was dropped",
                ),
                panel(
                    "Length of the dropped",
                    "none",
                    "Mean completion length of dropped groups, by reason, and of those trained on, tokens.",
                    Query(mean("trustbatch_dropped_completion_tokens", "reason"), "{{reason}}", "a group was dropped"),
                    (mean("trustbatch_trained_completion_tokens"), "trained on"),
                ),
                panel(
                    "Reward of the dropped",
                    "none",
                    "Mean reward of dropped groups, by reason, and of those trained on.",
                    Query(mean("trustbatch_dropped_reward", "reason"), "{{reason}}", "a group was dropped"),
                    (mean("trustbatch_trained_reward"), "trained on"),
                ),
                panel(
                    "Staleness of the dropped",
                    "none",
                    "Mean versions that the oldest token of a dropped group was behind, by reason.",
                    (
                        mean("trustbatch_dropped_staleness_versions", "reason"),
                        "{{reason}}",
                    ),
                    unless="a group was dropped",
                ),
                panel(
                    "Dead letters",
                    "none",
                    "Entries that nobody can train on: those kept (`trustbatch dead-letters list`), and all ever.",
                    ("max(trustbatch_dead_letters)", "kept"),
                    ("max(trustbatch_dead_letters_ever)", "ever"),
                ),
                panel(
                    "Lost groups and skipped steps",
                    "none",
                    "Groups that Redis lost, by cause, and steps that were not finite, since the learner's start.",
                    ("sum by (cause) (trustbatch_groups_lost_total)", "lost: {{cause}}"),
                    ("sum(trustbatch_steps_skipped_total)", "skipped steps"),
                ),
            ),
        ),
    ),
)
