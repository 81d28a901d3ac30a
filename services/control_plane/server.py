"""The HTTP server: one that ends its live streams before it waits for what is still being answered."""

from __future__ import annotations

import socket

import uvicorn
from fastapi import FastAPI


class Server(uvicorn.Server):
    """uvicorn's, for the control plane's application."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends the streams that would never end by themselves, then as usual."""
        app = self.config.app
        if isinstance(app, FastAPI):
            app.state.live.close()
        await super().shutdown(sockets)
