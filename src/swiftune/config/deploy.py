"""Arguments of ``swift deploy`` and ``swift app`` alone: where they listen, who may ask, and how much."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

from swiftune.config.declare import Arguments, unset
from swiftune.config.values import Count, CountOrZero, File, Name, Names, Seconds, Tokens

Port = Annotated[int, Ge(0), Le(65535)]


class ServerArguments(Arguments):
    """Server: where it listens, who may ask, and what it calls its models."""

    host: Name = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one of this machine."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    api_key: Name | None = unset("$SWIFTUNE_API_KEY; on another address than loopback, one is made and printed")
    """What a client has to send as its `Authorization: Bearer` key. Other users of this machine can read a command
    line, and not an environment."""
    served_model_name: Name | None = unset("the model's or the adapter's own")
    """Name of what the server was started with, in requests and in /v1/models."""
    owned_by: Name = "swiftune"
    """What /v1/models says in `owned_by`."""
    ssl_certfile: File | None = unset("no TLS")
    """PEM file with the certificate, for https."""
    ssl_keyfile: File | None = unset("no TLS")
    """PEM file with the certificate's key."""
    verbose: bool = False
    """Print a line for every request."""
    adapter_dirs: Names = []
    """Folders below which clients may load adapters while the server runs; without any, they may load none."""


class LimitArguments(Arguments):
    """Limits: what one request, and all of them together, may ask for."""

    max_answer_tokens: Tokens = 4096
    """Longest answer that a request may ask for; one that does not say gets --max_new_tokens, or as many as this."""
    max_n: Count = 8
    """Most answers (`n`, times prompts) in one request."""
    max_stop_words: CountOrZero = 16
    """Most `stop` texts in one request."""
    max_logprobs: CountOrZero = 20
    """Most `top_logprobs` at a token."""
    max_queue: CountOrZero = 64
    """Answers that may wait for their turn; a request beyond gets 429 and when to try again."""
    max_body_bytes: Count = 2 * 1024 * 1024
    """Largest body of a request."""
    max_connections: Count = 512
    """Most connections at a time."""
    max_adapters: Count = 16
    """Most adapters in memory at a time."""
    max_lora_rank: Count = 256
    """Largest rank of an adapter that a client loads."""
    stall_seconds: Seconds = 30
    """A client that sends or takes nothing for so long in the middle of a request is cut off."""
    stop_seconds: Seconds = 60
    """How long answers that are being written may go on after Ctrl-C or SIGTERM."""
    response_cache: CountOrZero = 0
    """Answers to remember of requests with temperature 0, for requests that are exactly the same."""
