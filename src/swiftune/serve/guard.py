"""What stands before every request: who may ask, how large it may be, how slowly it may come."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from swiftune.runtime.console import say
from swiftune.serve.errors import ApiError, told
from swiftune.serve.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = frozenset({"/health"})
"""What needs no key. Nor is a body awaited, which anyone could send for ever, a byte at a time."""
HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Of every response. The page needs nothing from elsewhere, and a script in an answer is not run."""


class Guard:
    """Reads a request's body before anything else sees it, and answers those that may not pass.

    Args:
        api_key: ``None``: anyone who calls the server by one of ``hosts`` may ask. (A page from elsewhere can have its
            own name lead to this machine; then the browser sends that name.)
        hosts: names in the Host header, without the port.
        page: paths that need no key either: what a browser loads before it can send one.
        paths: what metrics tell apart.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        hosts: Collection[str],
        page: Collection[str],
        paths: Collection[str],
        max_body: int,
        patience: float,
        metrics: Metrics,
        verbose: bool,
    ) -> None:
        self._app, self._key, self._hosts, self._page, self._paths = app, api_key, hosts, page, paths
        self._max_body, self._patience, self._metrics, self._verbose = max_body, patience, metrics, verbose

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            self._check_caller(scope)
            body = b"" if self._is_open(scope["path"]) else await self._body(scope, receive)
            await self._app(scope, _replayed(body, receive), watched)
        except Exception as error:
            shown = told(error)
            if not status:
                await _answer(shown, watched)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status or 499)).inc()
            if self._verbose:
                client = (scope.get("client") or ("?",))[0]
                took = time.perf_counter() - start
                say(f"{client} {scope['method']} {ascii(scope['path'])[1:-1][:200]} {status or 499} {took:.3f} s")

    def _check_caller(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            if _without_port(host) not in self._hosts:
                raise ApiError(403, "This server has no API key, and is for this machine alone.", code="wrong_host")
            return
        if self._is_open(scope["path"]):
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key.encode()):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    def _is_open(self, path: str) -> bool:
        return path in OPEN or path in self._page

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = ApiError(413, f"The request is larger than {self._max_body} bytes.", code="request_too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise too_large
        body, more = bytearray(), True
        while more:
            try:
                message = await asyncio.wait_for(receive(), self._patience)
            except asyncio.TimeoutError:
                raise ApiError(408, f"Nothing more of the request came for {self._patience} s.") from None
            if message["type"] == "http.disconnect":
                return b""
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._max_body:
                raise too_large
        return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """``receive`` of a request whose body has been read."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(error: ApiError, send: Send) -> None:
    content = json.dumps(error.body).encode()
    own = {"Content-Type": "application/json", "Content-Length": str(len(content)), **error.headers}
    if error.status in (408, 413):  # what is left of the body is not read
        own["Connection"] = "close"
    headers = [(name.lower().encode(), value.encode()) for name, value in own.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
