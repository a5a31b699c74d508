"""The server's process: its socket, its connections that must not stall, its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from swiftune.errors import UsageError
from swiftune.runtime import stop

if TYPE_CHECKING:
    from fastapi import FastAPI

_HEADERS_SECONDS = 10
"""How long a connection may take to say what it wants, the first time and each time after an answer."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is known before a model is loaded.

    Raises:
        UsageError: the address is no address of this machine, or the port is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--host {host} --port {port}: {reason}.", "Take another port; 0 finds a free one.") from error
    return listener


def serve(
    app: FastAPI,
    listener: socket.socket,
    *,
    stall_seconds: float,
    stop_seconds: int,
    max_connections: int,
    ssl_certfile: str | None = None,
    ssl_keyfile: str | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; then finishes what runs, for ``stop_seconds`` at most, and raises
    KeyboardInterrupt (see ``runtime.stop``)."""

    class Connection(_Connection):
        patience = stall_seconds

    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what goes wrong is told by the guard
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=max_connections,
        timeout_graceful_shutdown=stop_seconds,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
    )
    try:
        _Server(config).run([listener])
    finally:
        listener.close()


class _Server(uvicorn.Server):
    """Says that it ends; a second signal ends the process at once, as everywhere in ``swift``."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        stop.leave_at_the_next()
        seconds = self.config.timeout_graceful_shutdown
        stop.say_from_handler(f"Answers that are being written have {seconds} s; once more leaves at once.")
        super().handle_exit(sig, frame)


class _Connection(H11Protocol):
    """A connection that is cut off when its client takes nothing of an answer for too long, or never asks.

    What an answer of a stalled client takes is then bounded in time, as its length bounds it in size.
    """

    patience: float = 30

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def on_response_complete(self) -> None:
        """It may ask again."""
        super().on_response_complete()
        self._expect_request()

    def pause_writing(self) -> None:
        """The client does not read what is sent."""
        super().pause_writing()
        self._forget_timer()
        self._timer = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        self._forget_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._forget_timer()
        if self._silence is not None:
            self._silence.cancel()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """It asks nothing more; what it has not read by now it will not."""
        super().timeout_keep_alive_handler()
        self._timer = self.loop.call_later(self.patience, self.transport.abort)

    def _expect_request(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self.loop.call_later(_HEADERS_SECONDS, self._cut_if_silent)

    def _cut_if_silent(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if not answering and not self.transport.is_closing():  # one that closes may have an answer to read yet
            self.transport.abort()

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
