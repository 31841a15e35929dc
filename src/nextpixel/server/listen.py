"""The listening socket, signals and graceful shutdown."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nextpixel.config import ServeConfig
from nextpixel.errors import InputError


class _Server(uvicorn.Server):
    """Drains the queues on a signal, as uvicorn notifies the application only after the last response."""

    drain: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A second Ctrl-C stops at once; silence the tracebacks that uvicorn would log."""
        if self.should_exit:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.drain()
        await super().shutdown(sockets)


def listen(config: ServeConfig) -> socket.socket:
    """Open a listening socket. Raises InputError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {config.host}, port {config.port} ({reason}); name another", argument="host, port"
        ) from None


def serve(app: FastAPI, config: ServeConfig, opened: socket.socket) -> None:
    """Serve until a signal; current drawings then have shutdown_seconds to finish."""
    server = _Server(
        uvicorn.Config(
            app,
            access_log=False,  # requests are not logged
            log_level="warning",
            server_header=False,
            limit_concurrency=config.max_connections,
            timeout_graceful_shutdown=max(1, round(config.shutdown_seconds) + 1),
            h11_max_incomplete_event_size=32_768,
            http="h11",
            ws="none",
        )
    )

    def drain() -> None:
        for queue in (*app.state.engines.values(), app.state.fills):
            queue.drain(config.shutdown_seconds)

    server.drain = drain
    server.run(sockets=[opened])
