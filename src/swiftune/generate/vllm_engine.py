"""Answers by vLLM (arXiv:2309.06180), which runs as a server of its own: this is its client.

Prompts go there as tokens and answers come back as tokens, over vLLM's completions interface. Text and stop words are
made of the tokens here, in the way of the other engine, so that the same tokens are the same text. All requests are
tasks of one event loop in one thread.
"""

from __future__ import annotations

import asyncio
import json
import queue
import random
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from swiftune.errors import AdapterError, EngineEndedError, RunError, UsageError
from swiftune.generate.engine import BASE, Answer, Piece, Request, Stream, Token
from swiftune.generate.row import Row, Sink, limit_of
from swiftune.generate.sampling import Chooser
from swiftune.generate.text_writer import TextWriter
from swiftune.generate.vllm_adapters import Mix, check_adapter, lora_words, rank_allowed
from swiftune.generate.vllm_server import VllmServer
from swiftune.tuners.adapter_files import write_weighted_sum

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 256
"""Most requests that vLLM is sent at once; it works on no more by its own default."""
_MODEL = "model"
"""What vLLM calls the model without adapters."""
_Result = TypeVar("_Result")


class _RefusalError(RunError):
    """vLLM's answer to something that it will not do."""


class VllmEngine:
    """An Engine over a vLLM that it starts, and ends with ``close`` or with this process.

    Args:
        folder: the model's, with safetensors weights.
        adapters: LoRA adapters to begin with, and weighted sums of some, by name.
        default: name of the adapter that answers requests which name none.
        dtype: as vLLM's ``--dtype`` names it.
        stop_ids: tokens that end a turn (the renderer knows them), beside those of the model's generation_config.
        python: the Python that has vLLM; ``vllm_server.find_python`` finds it.
        trust_remote_code: whether code in the model's folder may run.
        words: further words for ``vllm serve``.
        lora_rank: highest rank of adapters that are loaded later; 0 where none will be. vLLM is faster without.
        later: how many adapters there may be at the same time, if some are loaded later.
        environment: variables for vLLM's process.

    Raises:
        AdapterError: an adapter that vLLM cannot take, or that was made for another model.
        RunError: vLLM does not start.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        python: str,
        adapters: Mapping[str, Path | Mix] | None = None,
        default: str = BASE,
        dtype: str = "auto",
        stop_ids: Sequence[int] = (),
        trust_remote_code: bool = False,
        words: Sequence[str] = (),
        lora_rank: int = 0,
        later: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        from swiftune.models.load import generation_config

        adapters = adapters or {}
        self._folder, self._trusted, self._default = folder, trust_remote_code, default
        ranks = [self._check(adapter) for adapter in adapters.values()]
        lora = lora_words(max([*ranks, lora_rank]), max(len(ranks), later))
        self._tokenizer, self._own = tokenizer, generation_config(folder)
        eos = self._own.eos_token_id
        self._stop_ids = frozenset([*stop_ids, *([eos] if isinstance(eos, int) else eos or [])])
        self._rank = rank_allowed(max([*ranks, lora_rank])) if lora else 0
        self._rows: set[Row] = set()
        self._adapters: dict[str, str] = {}
        """Our name of an adapter -> vLLM's, which is never used again: vLLM may remember what it computed under it."""
        settled = ["--served-model-name", _MODEL, "--generation-config", "vllm", "--max-logprobs", "-1"]
        trust = ["--trust-remote-code"] if trust_remote_code else []
        words = ["--model", str(folder), "--dtype", dtype, *settled, *trust, *lora, *words]
        self.server = VllmServer(python, words, dict(environment or {}))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="swiftune-vllm", daemon=True)
        self._thread.start()
        self._http = self.server.client(AT_ONCE + 8)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._ended = False
        try:
            self._context = int(self._run(self._call("GET", "/v1/models"))["data"][0]["max_model_len"])
            for name, adapter in adapters.items():
                self.load_adapter(name, self._as_folder(adapter))
        except BaseException:
            self.close()
            raise

    @property
    def context(self) -> int | None:
        """See Engine: what vLLM was given, or has room for."""
        return self._context

    @property
    def adapters(self) -> tuple[str, ...]:
        """See Engine."""
        return tuple(self._adapters)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See Engine."""
        ended: queue.SimpleQueue[tuple[int, Answer | BaseException]] = queue.SimpleQueue()

        def sink(index: int) -> Sink:
            return lambda item: None if isinstance(item, Piece) else ended.put((index, item))

        begun = [self._begin(request, sink(index)) for index, request in enumerate(requests)]
        try:
            for _ in begun:
                index, item = ended.get()
                if isinstance(item, BaseException):
                    raise item
                yield index, item
        finally:
            for future in begun:
                future.cancel()

    def stream(self, request: Request) -> Stream:
        """See Engine."""
        begun: list[Future[None]] = []

        def cancel() -> None:
            begun[0].cancel()

        stream = Stream(cancel)
        begun.append(self._begin(request, stream.put))
        return stream

    def load_adapter(self, name: str, path: Path) -> None:
        """See Engine."""
        if name in self._adapters or name == BASE:
            raise AdapterError(f"There is an adapter {name!r} already.", "Give this one another name.")
        rank = self._check(path)
        if rank > self._rank:
            raise AdapterError(
                f"The adapter in {path} has rank {rank}; vLLM was started for ranks up to {self._rank}.",
                f"Start again with --vllm_max_lora_rank {rank}.",
            )
        theirs = f"adapter-{random.SystemRandom().getrandbits(64):x}"
        try:
            self._run(self._call("POST", "/v1/load_lora_adapter", lora_name=theirs, lora_path=str(path.absolute())))
        except _RefusalError as refusal:
            raise AdapterError(
                f"vLLM does not take the adapter in {path}: {refusal.what}",
                f"Merge it into its model: swift export --adapters {path} --merge_lora true",
            ) from refusal
        self._adapters[name] = theirs

    def unload_adapter(self, name: str) -> None:
        """See Engine. Those that are being answered with it are answered to their end."""
        theirs = self._adapters.pop(name, None)
        if theirs is None:
            raise AdapterError(f"There is no adapter {name}.")
        while any(row.adapter == name and not row.ids for row in list(self._rows)):
            time.sleep(0.01)  # vLLM may not have heard of them yet, and would not know the adapter
        self._run(self._call("POST", "/v1/unload_lora_adapter", lora_name=theirs))

    def load(self) -> tuple[int, int]:
        """See Engine. A request waits until vLLM has written its first token."""
        if self._ended or not self.server.alive():
            raise EngineEndedError("vLLM has ended.", f"Its log: {self.server.log}")
        begun = [bool(row.ids) for row in list(self._rows)]
        return sum(begun), len(begun) - sum(begun)

    def close(self) -> None:
        """See Engine."""
        if self._ended:
            return
        self._ended = True
        self._run(self._leave())
        self.server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    def _check(self, adapter: Path | Mix) -> int:
        """The rank of what vLLM can take; else raises AdapterError."""
        paths = adapter.paths if isinstance(adapter, Mix) else [adapter]
        return sum(check_adapter(path, self._folder, trust_remote_code=self._trusted) for path in paths)

    def _as_folder(self, adapter: Path | Mix) -> Path:
        if not isinstance(adapter, Mix):
            return adapter
        return write_weighted_sum(adapter.paths, adapter.weights, self.server.folder / "sum")

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Does ``work`` in the loop's thread and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _begin(self, request: Request, sink: Sink) -> Future[None]:
        """Sends the request on its way; cancelling what is returned ends the work on it."""
        if self._ended:
            raise EngineEndedError("The engine is closed.")
        row = self._row(request, sink)
        body = _body(row, request) | {"model": self._adapters.get(row.adapter, _MODEL)}
        self._rows.add(row)
        future = asyncio.run_coroutine_threadsafe(self._write(row, body), self._loop)
        future.add_done_callback(lambda _: self._rows.discard(row))
        return future

    def _row(self, request: Request, sink: Sink) -> Row:
        name = self._default if request.adapter is None else request.adapter
        if name != BASE and name not in self._adapters:
            raise UsageError(f"There is no adapter {name!r}.", f"There are: {', '.join(self._adapters) or 'none'}.")
        prompt, asked = list(request.prompt_ids), request.sampling
        vocabulary = self._tokenizer.get_added_vocab()
        return Row(
            prompt,
            limit_of(len(prompt), asked.max_new_tokens or self._own.max_new_tokens, self._context),
            Chooser.of(asked, self._own, prompt, request.logprobs),
            self._stop_ids.union(vocabulary[word] for word in asked.stop if word in vocabulary),
            TextWriter(self._tokenizer, asked.stop),
            name,
            sink,
            submitted=time.perf_counter(),
        )

    async def _write(self, row: Row, body: dict[str, Any]) -> None:
        """Takes vLLM's tokens until the answer has ended; leaving earlier has vLLM stop its work."""
        try:
            async with self._turns, aclosing(self._events(body)) as events:
                async for choice in events:
                    for token in _tokens(choice, row.chooser.logprobs):
                        for item in row.take(token):
                            row.tell(item)
                        if row.finish is not None:
                            return
            raise RunError("vLLM ended an answer before its end.", f"Its log is {self.server.log}.")
        except asyncio.CancelledError:
            if self._ended:
                row.tell(EngineEndedError("The engine was closed."))
            raise
        except Exception as error:
            row.tell(error)

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The choices of vLLM's stream of server-sent events."""
        async with self._connected(), self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise _refusal(await response.aread())
            async for line in _lines(response.aiter_bytes()):
                kind, _, data = line.partition(": ")
                if kind != "data" or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise _refusal(data.encode())
                for choice in event["choices"]:
                    yield choice

    async def _call(self, method: str, path: str, **body: Any) -> Any:
        async with self._connected():
            response = await self._http.request(method, path, json=body or None)
        if response.status_code != 200:
            raise _refusal(response.content)
        return response.json() if method == "GET" else None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Within it, a connection that breaks off is explained."""
        import httpx2

        try:
            yield
        except httpx2.TransportError as error:
            last = self.server.last_words()
            raise EngineEndedError("vLLM has ended.", f"The last lines of its log:\n{last}") from error


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Lines that a line feed ends. Text may hold other ends of lines (U+2028, U+0085), at which httpx would cut."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode().rstrip("\r")


def _body(row: Row, request: Request) -> dict[str, Any]:
    """The request in the words of vLLM's completions interface."""
    how, seed = row.chooser, request.sampling.seed
    return {
        "prompt": row.prompt,
        "max_tokens": row.limit,
        "temperature": how.temperature,
        "top_k": how.top_k,
        "top_p": how.top_p,
        "min_p": how.min_p,
        "repetition_penalty": how.repetition_penalty,
        "presence_penalty": how.presence_penalty,
        "frequency_penalty": how.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in how.logit_bias} or None,
        "seed": random.SystemRandom().getrandbits(63) if seed is None else seed,
        # Which tokens end an answer is said here alone; else vLLM adds what the tokenizer says.
        "stop_token_ids": sorted(row.stop_ids),
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
        "logprobs": how.logprobs,
        "return_tokens_as_token_ids": True,
    }


def _tokens(choice: dict[str, Any], count: int | None) -> list[Token]:
    """The tokens of one event; of their log-probabilities the ``count`` highest."""
    ids: list[int] = choice.get("token_ids") or []
    if count is None:
        return [Token(token) for token in ids]
    told = choice["logprobs"]
    tops = [{_id(name): value for name, value in top.items()} for top in told["top_logprobs"] or [{}] * len(ids)]
    return [
        Token(token, logprob, tuple(sorted(top.items(), key=lambda pair: -pair[1])[:count]))
        for token, logprob, top in zip(ids, told["token_logprobs"], tops, strict=True)
    ]


def _id(name: str) -> int:
    """
    >>> _id("token_id:17")
    17
    """
    return int(name.removeprefix("token_id:"))


def _refusal(answer: bytes) -> _RefusalError:
    try:
        message = str(json.loads(answer)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = answer.decode(errors="replace")
    return _RefusalError(message)
