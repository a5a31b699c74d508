"""``swift deploy``: a server for programs; ``swift app``: the same with a page for people."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.config import AppArguments, DeployArguments
from swiftune.errors import AdapterError, Interrupted
from swiftune.recipes.checkpoint_args import filled_from, find_adapter, named, resolve, with_base
from swiftune.recipes.engines import open_engine
from swiftune.recipes.infer import sampling_of
from swiftune.recipes.opening import adds_tokens, model_name, open_tokenizer
from swiftune.runtime import garbage, stop
from swiftune.runtime.console import say

if TYPE_CHECKING:
    import socket

    from swiftune.serve import Model, Service


def deploy(args: DeployArguments) -> None:
    """The whole of ``swift deploy``.

    Raises:
        SwiftuneError: see ``errors``; ``Interrupted`` after Ctrl-C or SIGTERM, when what ran has been finished.
    """
    _run(args, page=False)


def app(args: AppArguments) -> None:
    """The whole of ``swift app``. Raises: see ``deploy``."""
    _run(args, page=True)


def _run(args: DeployArguments, *, page: bool) -> None:
    from swiftune.serve import create_app, serve
    from swiftune.serve.run import listen

    key, made = _key(args)
    listener = listen(args.host, args.port)
    serving = _Serving(args)
    service = serving.service
    garbage.look_as_usual()
    application = create_app(
        service,
        api_key=key,
        hosts={"localhost", "127.0.0.1", "::1", args.host},
        open_adapter=serving.open_adapter,
        adapter_dirs=[Path(folder).expanduser() for folder in args.adapter_dirs],
        max_adapters=args.max_adapters,
        max_lora_rank=args.max_lora_rank,
        owned_by=args.owned_by,
        page=page,
        verbose=args.verbose,
    )
    listener.listen()  # whoever reads the next line may connect at once
    _announce(args, listener, list(service.models), key if made else None, page)
    try:
        serve(
            application,
            listener,
            stall_seconds=args.stall_seconds,
            stop_seconds=args.stop_seconds,
            max_connections=args.max_connections,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
    except KeyboardInterrupt as asked:
        stopped = Interrupted("The server has stopped.")
        stopped.exit_code = stop.exit_code(asked)
        raise stopped from None
    finally:
        service.close()
        service.engine.close()


class _Serving:
    """The engine with what it was started with, and how another adapter becomes a model that can be asked for."""

    service: Service

    def __init__(self, args: DeployArguments) -> None:
        from swiftune.serve import Limits, Service

        pairs = [named(adapter) for adapter in args.adapters]
        by_name = {name: path for name, path in pairs if name is not None and not args.adapter_weights}
        lead = [path for name, path in pairs if name not in by_name]
        folders = {name: find_adapter(path, args) for name, path in by_name.items()}
        # Without --model, the base is that of the first adapter.
        first = lead or ([str(next(iter(folders.values())))] if folders and args.model is None else [])
        resolved = resolve(args.model_copy(update={"adapters": first}))
        given = {"system": args.system, "enable_thinking": args.enable_thinking}
        self._given = args.model_copy(update={"model": resolved.args.model})
        self._base = resolved.args.model_copy(update=given)
        main = resolved.args if lead else self._base
        adapters = resolved.adapters if lead else []
        self._opened = open_tokenizer(main, adapters=adapters)
        base = open_tokenizer(main).tokenizer if adapters else self._opened.tokenizer
        self._brings_tokens = any(adds_tokens(folder, base) for folder in adapters)
        self._base_name = model_name(resolved.args)
        models = [*self._started_with(args, adapters), *self._named(folders)]
        later = args.max_adapters if args.adapter_dirs else 0
        self.service = Service(
            open_engine(main, self._opened, adapters, folders, later),
            models,
            self._opened.tokenizer,
            limits=Limits(
                max_answer_tokens=args.max_answer_tokens,
                max_n=args.max_n,
                max_stop_words=args.max_stop_words,
                max_logprobs=args.max_logprobs,
                max_queue=args.max_queue,
                max_prompt=args.max_length,
                max_running=args.max_batch_size,
                max_body_bytes=args.max_body_bytes,
                stall_seconds=args.stall_seconds,
                response_cache=args.response_cache,
            ),
            default=sampling_of(args, None),
            vocabulary=len(self._opened.tokenizer),
        )

    def open_adapter(self, name: str, folder: Path, recorded: dict[str, Any]) -> Model:
        """The model of an adapter that a client loads; of its args.json only texts and switches are taken."""
        self._check_beside(folder)
        with_base(self._base, folder)
        if recorded.get("template") not in (None, self._base.template):
            raise AdapterError(f"It was trained with another chat template than this server's, {self._base.template}.")
        own = {key: recorded.get(key) for key in ("system", "enable_thinking")}
        system = own["system"] if isinstance(own["system"], str) else None
        thinking = own["enable_thinking"] if isinstance(own["enable_thinking"], bool) else None
        return self._model(name, name, system, thinking, str(folder))

    def _started_with(self, args: DeployArguments, adapters: list[Path]) -> list[Model]:
        from swiftune.generate.engine import BASE
        from swiftune.serve import Model
        from swiftune.tuners.adapter import read_config
        from swiftune.tuners.adapter_files import changes_base

        if not adapters:
            name = args.served_model_name or self._base_name
            return [Model(name, None, self._opened.renderer, str(self._opened.folder))]
        name = args.served_model_name or "+".join(folder.name for folder in adapters)
        lead = Model(name, None, self._opened.renderer, " + ".join(map(str, adapters)), self._base_name)
        if self._brings_tokens or any(changes_base(read_config(folder)) for folder in adapters):
            return [lead]
        return [lead, self._model(self._base_name, BASE, self._base.system, self._base.enable_thinking, "")]

    def _named(self, folders: dict[str, Path]) -> list[Model]:
        models = []
        for name, folder in folders.items():
            own = with_base(filled_from(self._given, folder), folder)
            if own.template != self._base.template:
                raise AdapterError(
                    f"--adapters {name}={folder} was trained with the template {own.template}, and would be served "
                    f"with {self._base.template}.",
                    "Serve it by itself, or give one --template for all.",
                )
            self._check_beside(folder)
            models.append(self._model(name, name, own.system, own.enable_thinking, str(folder)))
        return models

    def _check_beside(self, folder: Path) -> None:
        """Prompts of all models that are served together become the same tokens."""
        if self._brings_tokens:
            raise AdapterError("The adapter that the server was started with brings tokens; none can be beside it.")
        if adds_tokens(folder, self._opened.tokenizer):
            raise AdapterError(
                f"The adapter in {folder} brings tokens of its own, and cannot be served beside others.",
                f"Serve it by itself: swift deploy --adapters {folder}",
            )

    def _model(self, name: str, adapter: str, system: str | None, thinking: bool | None, folder: str) -> Model:
        from swiftune.serve import Model

        renderer = self._opened.rendering(system, thinking)
        is_base = name == self._base_name
        return Model(name, adapter, renderer, folder or str(self._opened.folder), None if is_base else self._base_name)


def _key(args: DeployArguments) -> tuple[str | None, bool]:
    """The API key, and whether it was made here."""
    key = args.api_key or os.environ.get("SWIFTUNE_API_KEY") or None
    if key is None and not _is_loopback(args.host):
        return f"sk-{secrets.token_urlsafe(24)}", True
    return key, False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(args: DeployArguments, listener: socket.socket, models: list[str], made: str | None, page: bool) -> None:
    port = listener.getsockname()[1]
    host = f"[{args.host}]" if ":" in args.host else args.host
    url = f"{'https' if args.ssl_certfile else 'http'}://{host}:{port}"
    if made is not None:  # not to a log
        print(f"API key: {made}" + (f"\nChat with it at {url}/#key={made}" if page else ""), flush=True)
    say(f"Models: {', '.join(models)}", style="dim")
    say(f"Chat at {url}/" if page else f"Serving at {url}/v1")
