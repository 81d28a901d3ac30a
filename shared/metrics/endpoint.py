"""The address that Prometheus scrapes."""

from __future__ import annotations

from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server


def serve(registry: CollectorRegistry, host: str, port: int) -> tuple[WSGIServer, Thread, str]:
    """Starts the endpoint; port 0 takes a free one. Returns server, thread and the address to scrape."""
    server, thread = start_http_server(port, addr=host, registry=registry)
    return server, thread, f"http://{host}:{server.server_port}/metrics"
