"""Commands about the policy store."""

from __future__ import annotations

from typing import Annotated

import typer

from services.commands.options import Overrides, Required, read_config

store_app = typer.Typer(help="Serve published versions to machines far away; foresee their lag.", no_args_is_help=True)


@store_app.command("serve")
def store_serve(
    *,
    config: Required,
    overrides: Overrides,
    host: Annotated[str, typer.Option(metavar="HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65_535, help="0 takes a free one.")] = 8090,
) -> None:
    """Serve a run's published versions over HTTP, to read.

    Rollout servers elsewhere are given its address as store.url and the control plane's read token as store.token.
    """
    from services.store_server import serve

    serve(read_config(config, overrides), host, port)


@store_app.command("foresee")
def store_foresee(
    *,
    size: Annotated[str, typer.Option(metavar="BYTES", help="Of one version as it travels, e.g. 84MB.")],
    rate: Annotated[str, typer.Option(metavar="BYTES", help="A second over the link, e.g. 6.25MB for 50 Mbit/s.")],
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="Between published versions.")],
    answer: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="From a request to its first byte.")] = 0.0,
    parts: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests for one version; as store.part_bytes cuts it.")
    ] = None,
    parallel: Annotated[int, typer.Option(metavar="N", min=1, help="Of them at once, as store.parallel.")] = 4,
    measure: Annotated[
        int, typer.Option(metavar="N", min=0, max=10_000, help="Also publish N versions, and fetch them at that rate.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say by how many versions a server behind a slow link will be behind, and measure it if asked to."""
    from services.store_lag import Requests, show

    show(size, rate, every, measure, as_json, Requests(answer, parts, parallel))
