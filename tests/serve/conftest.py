"""A real server over a small real model: the engine, uvicorn and the socket are those of ``swift deploy``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai
import pytest
import requests
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

SYSTEM = "You are a helpful assistant."


@dataclass
class Server:
    """A running ``swift deploy``."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str
    key: str | None

    @property
    def said(self) -> str:
        """What it has written to stderr so far."""
        return (self.log / "err").read_text()

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def post(self, path: str, body: object, **more: object) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=60, **more)  # type: ignore[arg-type]

    def load(self) -> tuple[int, int]:
        said = requests.get(f"{self.url}/health", timeout=10).json()
        return said["running"], said["waiting"]

    def wait_idle(self, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while self.load() != (0, 0):
            assert time.monotonic() < end, f"places are not freed: {self.load()}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def adapters(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters ``code`` and ``chat``, with random weights; ``chat`` was trained with SYSTEM."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("code", "chat"), 1):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config).save_pretrained(root / name)
        recorded = {"model": str(tiny_qwen2), "torch_dtype": "float32", "template": "auto"}
        recorded |= {"system": SYSTEM} if name == "chat" else {}
        (root / name / "args.json").write_text(json.dumps(recorded))
    return root


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts ``swift deploy`` (or another command) on a free port, with these flags."""
    running: list[Server] = []
    cache = tmp_path_factory.mktemp("cache")

    def begin(*flags: str, command: str = "deploy", host: str = "127.0.0.1", key: str | None = None) -> Server:
        words = [command, "--model", str(tiny_qwen2), "--torch_dtype", "float32", "--host", host, "--port", "0"]
        words += ["--api_key", key] if key else []
        environment = {**os.environ, "SWIFTUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        log = tmp_path_factory.mktemp("server")
        with (log / "out").open("w") as out, (log / "err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "swiftune.cli.main", *words, *flags], stdout=out, stderr=err, env=environment
            )
        server = Server(process, log, "", key)
        running.append(server)
        while not (found := re.search(r"at (https?)://.*:(\d+)/", server.said)):
            assert process.poll() is None, f"the server did not start:\n{server.said}"
            time.sleep(0.05)
        server.url = f"{found[1]}://127.0.0.1:{found[2]}"
        if made := re.search(r"API key: (\S+)", (log / "out").read_text()):
            server.key = made[1]
        return server

    yield begin
    for server in running:
        if "client" in vars(server):
            server.client.close()
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(start: Start, adapters: Path) -> Server:
    """A server with the adapter ``code`` by name, that lets others be loaded. Shared: leave it as it was."""
    return start(
        *("--adapters", f"code={adapters / 'code'}", "--adapter_dirs", str(adapters)),
        *("--served_model_name", "tiny", "--max_answer_tokens", "600", "--response_cache", "8"),
    )
