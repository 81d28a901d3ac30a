"""The way of a version from the learner to servers that have proven it."""

from __future__ import annotations

from deploy.grafana.panels import Board, Query, mean, panel, quantiles

BOARD = Board(
    "trustbatch-weights",
    "trustbatch: weights",
    "The way of a version from the learner to servers that have proven it.",
    (
        (
            "Publishing",
            (
                panel(
                    "Versions",
                    "none",
                    "The newest published version and the one that each rollout server serves; -1: none.",
                    ("max(trustbatch_policy_version)", "published"),
                    ("trustbatch_rollout_policy_version", "{{instance}}"),
                ),
                panel(
                    "Time to publish",
                    "s",
                    "Writing and announcing a version, mean; and of it making a patch.",
                    (
                        mean("trustbatch_publish_seconds"),
                        "publish",
                    ),
                    Query(mean("trustbatch_patch_encode_seconds"), "patch", "the store keeps patches"),
                ),
                panel(
                    "Written to the store",
                    "Bps",
                    "Bytes a second, as whole versions and as patches.",
                    ("sum by (kind) (rate(trustbatch_published_bytes_total[$__rate_interval]))", "{{kind}}"),
                ),
            ),
        ),
        (
            "Picking up",
            (
                panel(
                    "Time to serve a version",
                    "s",
                    "From looking for a version to serving it, proven: median and 95 % over all servers.",
                    *quantiles("trustbatch_sync_seconds"),
                ),
                panel(
                    "Its stages",
                    "s",
                    "Mean seconds of each stage: fetch, stage, wait (groups in flight), load, receive, probe, tensors.",
                    (
                        mean("trustbatch_sync_stage_seconds", "stage"),
                        "{{stage}}",
                    ),
                ),
                panel(
                    "Generation stands still",
                    "s",
                    "For a sync: median and 95 %.",
                    *quantiles("trustbatch_sync_pause_seconds"),
                ),
                panel(
                    "Versions loaded",
                    "short",
                    "A minute, by the way that they came: files or the wire.",
                    ("60 * sum by (way) (rate(trustbatch_syncs_total[$__rate_interval]))", "{{way}}"),
                ),
                panel(
                    "Failures",
                    "short",
                    "A minute, by reason: store (not read), engine (not loaded), transfer (the wire), unproven.",
                    ("60 * sum by (reason) (rate(trustbatch_sync_failures_total[$__rate_interval]))", "{{reason}}"),
                ),
                panel(
                    "Refused version",
                    "none",
                    "The version that a server cannot prove; -1: none.",
                    ("trustbatch_rollout_refused_version", "{{instance}}"),
                ),
            ),
        ),
        (
            "Proof",
            (
                panel(
                    "Numerics floor",
                    "none",
                    "Mean and largest difference between a served version and its probe, nats.",
                    ("trustbatch_rollout_numerics_floor_mean_nats", "mean {{instance}}"),
                    ("trustbatch_rollout_numerics_floor_max_nats", "max {{instance}}"),
                    kind="log lines",
                ),
                panel(
                    "ESS of the probe",
                    "percentunit",
                    "Effective sample size over the probe's tokens: that of staleness 0.",
                    ("trustbatch_rollout_numerics_floor_token_ess", "{{instance}}"),
                ),
                panel(
                    "Tensors that only the probe has seen",
                    "none",
                    "Loaded tensors whose bytes could not be compared with the published files.",
                    ("trustbatch_rollout_tensors_unchecked", "{{instance}}"),
                ),
            ),
        ),
        (
            "The store and the wire",
            (
                panel(
                    "Checkpoints",
                    "short",
                    "Checkpoints since the learner's start, and publishes after which old versions stayed.",
                    ("sum(trustbatch_checkpoints_total)", "checkpoints"),
                    ("sum(trustbatch_retention_failures_total)", "versions that stay"),
                ),
                panel(
                    "Sent over the wire",
                    "short",
                    "Servers a minute that a version was sent to, by outcome.",
                    ("60 * sum by (outcome) (rate(trustbatch_transfers_total[$__rate_interval]))", "{{outcome}}"),
                    unless="store.transfer.kind is nccl or gloo",
                ),
                panel(
                    "Time on the wire",
                    "s",
                    "Sending a version, from the invitation to the last receipt, mean.",
                    (
                        mean("trustbatch_transfer_seconds"),
                        "send",
                    ),
                    unless="store.transfer.kind is nccl or gloo",
                ),
            ),
        ),
    ),
)
