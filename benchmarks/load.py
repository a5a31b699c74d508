"""Clients that chat with ``swift deploy`` for minutes, beside others that leave, stall, and send rubbish.

``python -m benchmarks.load [--minutes 5] [--clients 16] [--model NAME] [--adapter FOLDER]`` starts the server, talks
to it, and prints one JSON object: errors of the good clients (there should be none), first tokens and gaps between
tokens (seconds; median, 95th, 99th percentile, most), tokens/s, and the server's resident memory at start and end
with its growth over the second half, and by how much it may grow. It exits with 1 if a good client met an error, or if
the memory grew by more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import psutil

from swiftune.generate.transformers_engine import PREFIX_BYTES

MARGIN = 64
"""MiB that a server may grow by in the second half beside what its cache of prefixes takes: more requests at once than
ever before, and what the allocator keeps of it."""
QUESTIONS = (
    "Give three tips for staying healthy.",
    "What is the capital of France, and what is it known for?",
    "Write a short story about a robot that learns to paint.",
    "Explain in simple words why the sky is blue.",
    "List five fruits and what each one tastes like.",
    "How do I learn a new language quickly?",
)
SYSTEM = "You are a helpful assistant. Answer plainly, in a few sentences, and say so where you do not know."


@dataclass
class Seen:
    """What the clients met."""

    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    nuisances: dict[str, int] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, bytes) of the server."""


@dataclass
class Load:
    """One run: where the server is, until when, and what was seen."""

    url: str
    models: list[str]
    end: float
    seen: Seen
    max_tokens: int

    def ask(self, draw: random.Random) -> dict[str, Any]:
        """The body of a chat."""
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": draw.choice(QUESTIONS)}]
        length = draw.randint(self.max_tokens // 2, self.max_tokens)
        body = {"model": draw.choice(self.models), "messages": messages, "max_tokens": length, "stream": True}
        return body | {"temperature": draw.choice([0, 0.7]), "seed": draw.randrange(1 << 30)}

    def count(self, nuisance: str) -> None:
        """One more of these."""
        self.seen.nuisances[nuisance] = self.seen.nuisances.get(nuisance, 0) + 1


async def chat(load: Load, number: int) -> None:
    """A good client: asks, reads to the end, asks again."""
    client = openai.AsyncOpenAI(base_url=f"{load.url}/v1", api_key="none", max_retries=0, timeout=120)
    draw = random.Random(number)
    while time.monotonic() < load.end:
        begun = last = time.perf_counter()
        fresh, finished = True, None
        try:
            stream = await client.chat.completions.create(**load.ask(draw), stream_options={"include_usage": True})
            async for chunk in stream:
                if chunk.usage is not None:
                    load.seen.tokens += chunk.usage.completion_tokens
                for choice in chunk.choices:
                    finished = choice.finish_reason or finished
                    if choice.delta.content:
                        now = time.perf_counter()
                        (load.seen.first_tokens if fresh else load.seen.gaps).append(now - (begun if fresh else last))
                        fresh, last = False, now
            if finished is None:
                raise RuntimeError("a stream ended without a reason")
            load.seen.answers += 1
        except Exception as error:
            load.seen.errors.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(1)
    await client.close()


async def leave(load: Load) -> None:
    """Leaves in the middle of an answer, or before it begins."""
    draw = random.Random(1000)
    async with httpx2.AsyncClient(timeout=60) as client:
        while time.monotonic() < load.end:
            with suppress(httpx2.HTTPError, asyncio.TimeoutError):
                await asyncio.wait_for(_read_a_while(client, load, draw), draw.uniform(0.05, 3))
            load.count("left")
            await asyncio.sleep(1)


async def _read_a_while(client: httpx2.AsyncClient, load: Load, draw: random.Random) -> None:
    body = load.ask(draw) | {"stream": draw.random() < 0.7}
    async with client.stream("POST", f"{load.url}/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_bytes():
            pass


async def stall(load: Load) -> None:
    """Asks for much, and reads nothing of it; or stops in the middle of its question."""
    port, draw = int(load.url.rpartition(":")[2]), random.Random(2000)
    while time.monotonic() < load.end:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            body = json.dumps(load.ask(draw) | {"logprobs": True, "top_logprobs": 20}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            cut = len(body) if draw.random() < 0.5 else 10
            writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + body[:cut])
            await asyncio.sleep(8)
            writer.transport.abort()
        load.count("stalled")


async def rubbish(load: Load) -> None:
    """Sends what no server should be sent."""
    draw = random.Random(3000)
    bodies: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(draw.randrange(2000)),
        lambda: b"[" * 5000,
        lambda: json.dumps({"messages": "no", "n": -1}).encode(),
        lambda: json.dumps({"prompt": "a " * 100_000}).encode(),
        lambda: json.dumps({"prompt": [2**40]}).encode(),
        lambda: b"a" * 3_000_000,
        lambda: json.dumps({"lora_name": "x", "lora_path": "../../etc"}).encode(),
    ]
    paths = ["/v1/chat/completions", "/v1/completions", "/v1/load_lora_adapter", "/v1/../../etc/passwd", "/v1/models"]
    async with httpx2.AsyncClient(timeout=60) as client:
        while time.monotonic() < load.end:
            with suppress(httpx2.HTTPError):
                headers = {"Content-Type": "application/json"}
                answer = await client.post(
                    load.url + draw.choice(paths), content=draw.choice(bodies)(), headers=headers
                )
                load.seen.statuses[answer.status_code] = load.seen.statuses.get(answer.status_code, 0) + 1
            load.count("rubbish")
            await asyncio.sleep(0.5)


async def watch(load: Load, process: int) -> None:
    """Notes the server's memory, once a second."""
    server, start = psutil.Process(process), time.monotonic()
    while time.monotonic() < load.end:
        load.seen.memory.append((time.monotonic() - start, server.memory_info().rss))
        await asyncio.sleep(1)


async def run(load: Load, clients: int, process: int) -> None:
    """All of them at once."""
    others: list[Awaitable[None]] = [leave(load), leave(load), stall(load), stall(load), rubbish(load)]
    await asyncio.gather(*(chat(load, number) for number in range(clients)), *others, watch(load, process))


def report(seen: Seen, seconds: float) -> dict[str, Any]:
    """The figures."""

    def spread(values: list[float]) -> dict[str, float]:
        if not values:
            return {}
        p50, p95, p99, most = np.percentile(values, [50, 95, 99, 100])
        return {"p50": round(p50, 4), "p95": round(p95, 4), "p99": round(p99, 4), "max": round(most, 4)}

    when, memory = np.array([t for t, _ in seen.memory]), np.array([b for _, b in seen.memory]) / 2**20
    half = len(when) // 2
    slope = float(np.polyfit(when[half:], memory[half:], 1)[0]) if half > 2 else float("nan")
    growth = slope * (when[-1] - when[half])
    # By an eighth of the run the weights have been read, and passes are as large as they get; then the cache grows.
    room = PREFIX_BYTES / 2**20 - (memory[half] - memory[len(when) // 8])
    return {
        "seconds": round(seconds, 1),
        "answers": seen.answers,
        "tokens/s": round(seen.tokens / seconds, 1),
        "errors": len(seen.errors),
        "first errors": seen.errors[:5],
        "first token (s)": spread(seen.first_tokens),
        "gap between tokens (s)": spread(seen.gaps),
        "memory (MiB)": {
            "start": round(memory[0]),
            "middle": round(memory[half]),
            "end": round(memory[-1]),
            "most": round(memory.max()),
            "slope of second half (MiB/min)": round(slope * 60, 2),
            "growth of second half": round(growth, 1),
            "may be": round(float(max(room, 0)) + MARGIN, 1),
        },
        "nuisances": seen.nuisances,
        "statuses of rubbish": {str(status): n for status, n in sorted(seen.statuses.items())},
    }


def grew(figures: dict[str, Any]) -> bool:
    """Whether the server's memory grew by more than it may: what its cache of prefixes has left to fill, and MARGIN."""
    memory = figures["memory (MiB)"]
    return bool(memory["growth of second half"] > memory["may be"])


def main() -> int:
    """Starts the server, loads it, prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--max_tokens", type=int, default=96)
    parser.add_argument("--model", default=None)
    parser.add_argument("--adapter", default=None, help="asked for by half of the requests")
    parser.add_argument("--batch", type=int, default=16, help="the server's --max_batch_size")
    given = parser.parse_args()
    words = [sys.executable, "-m", "swiftune.cli.main", "deploy", "--port", "0", "--stall_seconds", "5"]
    words += ["--max_batch_size", str(given.batch), "--max_queue", "64"]
    words += ["--model", given.model] if given.model else []
    words += ["--adapters", f"tuned={given.adapter}"] if given.adapter else []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        server = subprocess.Popen(words, stderr=said, env={**os.environ, "NO_COLOR": "1"})
        try:
            while not (found := re.search(r"at (http://\S+)/v1", (Path(folder) / "said").read_text())):
                if server.poll() is not None:
                    sys.exit((Path(folder) / "said").read_text())
                time.sleep(0.2)
            models = [model.id for model in openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none").models.list()]
            seen, start = Seen(), time.monotonic()
            load = Load(found[1], models, start + given.minutes * 60, seen, given.max_tokens)
            asyncio.run(run(load, given.clients, server.pid))
            figures = report(seen, time.monotonic() - start)
        finally:
            server.terminate()
            figures_end = server.wait(90)
    print(json.dumps({**figures, "exit code of the server": figures_end}, indent=2))
    return int(bool(seen.errors) or grew(figures))


if __name__ == "__main__":
    sys.exit(main())
