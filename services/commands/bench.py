"""Benchmarks: each prints its own reference, taken in the same run."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from services.commands.options import PASSED_ON, become

bench_app = typer.Typer(help="Measure this machine: tables, or JSON with --json.", no_args_is_help=True)


@bench_app.command("weights")
def bench_weights(
    *,
    megabytes: Annotated[float, typer.Option(metavar="MB", min=1, max=100_000, help="Of the weights, float32.")] = 300,
    versions: Annotated[int, typer.Option(metavar="N", min=2, max=10_000, help="Published, one each step.")] = 20,
    learning_rate: Annotated[float, typer.Option(metavar="LR", min=0, max=1, help="Sets how much changes.")] = 1e-6,
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="Of the rollout server.")] = "vllm",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the published weights.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how long a version takes from the learner to a proven rollout server, and the pause within.

    Runs Redis, a learner and a rollout server with a model of random weights; nothing is downloaded.
    """
    from services.bench.weights import show

    show(megabytes, versions, learning_rate, engine, dtype, as_json)


@bench_app.command("control-plane")
def bench_control_plane(
    *,
    servers: Annotated[
        int, typer.Option(metavar="N", min=1, max=1900, help="Rollout servers with a heartbeat.")
    ] = 1000,
    days: Annotated[float, typer.Option(metavar="DAYS", min=0.01, max=60, help="Of history.")] = 30,
    step_every: Annotated[float, typer.Option(metavar="SECONDS", min=1, max=3600, help="Between two steps.")] = 60,
    requests: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="Of each route.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how long each route of the control plane takes over a large run, and what the history takes in Redis.

    Runs a Redis and a control plane of its own; filling 30 days takes some minutes.
    """
    from services.bench.control_plane import show

    show(servers, days, step_every, requests, as_json)


@bench_app.command("learner", context_settings=PASSED_ON)
def bench_learner(context: typer.Context) -> None:
    """Measure what an optimizer step takes, beside the padded path with whole logits; --overhead: beside the model.

    Random weights of a named shape, groups of skewed lengths; nothing is downloaded, and no Redis is needed.
    `trustbatch bench learner --help` lists its options.
    """
    become("learner.bench", "learner", *context.args)
