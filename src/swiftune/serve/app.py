"""The routes: OpenAI's, vLLM's for adapters, and those for whoever runs the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from swiftune import __version__
from swiftune.config.values import ADAPTER_NAME
from swiftune.errors import EngineEndedError
from swiftune.serve.adapters import allowed_folder
from swiftune.serve.errors import ApiError, wrong
from swiftune.serve.guard import Guard
from swiftune.serve.replies import ChatReply, CompletionReply, Reply
from swiftune.serve.schema import ChatRequest, CompletionRequest, LoadAdapterRequest, UnloadAdapterRequest
from swiftune.serve.service import Asked, Model, Service
from swiftune.serve.tool_calls import MARK

Opener = Callable[[str, Path, dict[str, Any]], Model]
"""Makes the model of an adapter: its name, its folder, what its args.json says."""

_PAGE = Path(__file__).parent / "page"
_FILES = {"/": "index.html", "/app.js": "app.js", "/style.css": "style.css"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "OpenAI's error object"} for status in (400, 401, 403, 404, 408, 413, 429, 503)
}
_JSON: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    200: {"description": "The answer; a stream of events with stream: true", "content": {"text/event-stream": {}}},
}


def create_app(
    service: Service,
    *,
    api_key: str | None,
    hosts: Collection[str],
    open_adapter: Opener,
    adapter_dirs: Collection[Path] = (),
    max_adapters: int = 16,
    max_lora_rank: int = 256,
    owned_by: str = "swiftune",
    page: bool = False,
    verbose: bool = False,
) -> FastAPI:
    """The application, for any ASGI server.

    Args:
        hosts: what callers may call the server where there is no key (see ``Guard``).
        page: whether ``/`` is a page to chat on.
    """
    app = FastAPI(title="swift deploy", version=__version__, docs_url=None, redoc_url=None, responses=_ERRORS)
    _add_openai(app, service, owned_by)
    _add_adapters(app, service, open_adapter, list(adapter_dirs), max_adapters, max_lora_rank)
    _add_health(app, service)
    if page:
        _add_page(app)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(
        Guard,
        api_key=api_key,
        hosts=hosts,
        page=_FILES if page else (),
        paths={route.path for route in app.routes if hasattr(route, "path")},
        max_body=service.limits.max_body_bytes,
        patience=service.limits.stall_seconds,
        metrics=service.metrics,
        verbose=verbose,
    )
    return app


def _add_openai(app: FastAPI, service: Service, owned_by: str) -> None:
    @app.post("/v1/chat/completions", responses=_JSON)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answers a chat."""
        asked = await service.chat(body)
        template = str(asked.model.renderer.tokenizer.chat_template)
        calls = body.offered is not None and MARK in template
        return await _respond(service, body, asked, ChatReply(service, asked, body.likeliest, calls), request)

    @app.post("/v1/completions", responses=_JSON)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Goes on from texts or tokens as they are."""
        asked = await service.complete(body)
        return await _respond(service, body, asked, CompletionReply(service, asked, body.likeliest), request)

    started = int(time.time())

    def card(model: Model) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": started,
            "owned_by": owned_by,
            "root": model.folder,
            "parent": model.parent,
            "max_model_len": service.engine.context,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What can be asked for."""
        return {"object": "list", "data": [card(model) for model in service.models.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return card(service.model(name))


def _add_adapters(
    app: FastAPI, service: Service, open_adapter: Opener, dirs: list[Path], max_adapters: int, max_rank: int
) -> None:
    one_at_a_time = asyncio.Lock()

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(body: LoadAdapterRequest) -> dict[str, str]:
        """Loads an adapter from a folder that the operator allowed."""
        folder, recorded = allowed_folder(body.lora_path, dirs, max_rank)
        if not ADAPTER_NAME.fullmatch(body.lora_name):
            raise wrong("lora_name begins with a letter or digit; then come letters, digits and _ . : -", "lora_name")
        async with one_at_a_time:
            if body.lora_name in service.models:
                raise wrong(f"There is a model {body.lora_name} already.", "lora_name")
            if len(service.engine.adapters) >= max_adapters:
                raise wrong(f"{max_adapters} adapters are loaded, and no more may be: unload one.")
            await service.add(open_adapter(body.lora_name, folder, recorded), folder)
        return {"status": "loaded", "lora_name": body.lora_name}

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadAdapterRequest) -> dict[str, str]:
        """Forgets an adapter, once what it is writing is written."""
        if not dirs:
            raise ApiError(403, "This server lets no adapters be unloaded: it was started without --adapter_dirs.")
        async with one_at_a_time:
            await service.remove(body.lora_name)
        return {"status": "unloaded", "lora_name": body.lora_name}


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether answers are written, and how many."""
        try:
            running, waiting = service.engine.load()
        except EngineEndedError as error:
            raise ApiError(503, error.what) from error
        return {"status": "ok", "running": running, "waiting": waiting}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, for Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    async def file(request: Request) -> Response:
        return FileResponse(_PAGE / _FILES[request.url.path], headers={"Cache-Control": "no-cache"})

    for path in _FILES:
        app.add_route(path, file, include_in_schema=False)


class _Events(StreamingResponse):
    """A stream that frees its place when it ends, whoever ends it."""

    def __init__(self, service: Service, asked: Asked, reply: Reply, include_usage: bool) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(reply.events(include_usage), headers=headers, media_type="text/event-stream")
        self._service, self._asked = service, asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not all(hasattr(stream, "answer") for stream in self._asked.streams):
                self._service.metrics.left.inc()
            self._asked.close()


async def _respond(
    service: Service, body: ChatRequest | CompletionRequest, asked: Asked, reply: Reply, request: Request
) -> Response:
    if body.stream:
        return _Events(service, asked, reply, body.include_usage)
    work, left = asyncio.create_task(reply.whole()), asyncio.create_task(_left(request.receive))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return JSONResponse(work.result())
        service.metrics.left.inc()
        return Response(status_code=499)  # nobody is there to read it
    finally:
        asked.close()
        work.cancel()
        left.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: "There is nothing at this path.", 405: "This path takes another method."}.get(error.status_code)
    raise ApiError(error.status_code, message or str(error.detail)) from error  # the guard answers


async def _on_invalid(_: Request, error: Exception) -> Response:
    """The first mistake of a body, in a sentence."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:] if part != "body")[:200]
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    raise wrong(ascii(message)[1:-1], ascii(place)[1:-1] or None) from error
