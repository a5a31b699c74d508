"""``swift infer --infer_backend vllm`` as it is typed; and an exported folder in vLLM by itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import psutil
import pytest

from swiftune.cli.main import main
from swiftune.generate.vllm_engine import VllmEngine
from tests import tiny
from tests.contract.test_lines import INFER_VLLM, typed
from tests.contract.world import World, settle
from tests.recipes.chats import run_of
from tests.vllm.conftest import Folders
from tests.vllm.test_engine import PROMPTS, by_transformers

SWIFT = [sys.executable, "-m", "swiftune.cli.main"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> World:
    """A model that vLLM can serve, at the id that the lines in people's scripts name, and a checkpoint of it."""
    monkeypatch.setenv("SWIFT_VLLM_PYTHON", python)
    model = tiny.make_model(tmp_path / "mirror" / "Qwen/Qwen2.5-7B-Instruct", layers=1, hidden=256)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32768}))
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(config | {"max_new_tokens": 64}))  # it finds no end itself
    world = settle(tmp_path / "work", tmp_path / "mirror", monkeypatch)
    words = "sft --model Qwen2.5-7B-Instruct --dataset self_cognition.json --max_steps 2 --output_dir short"
    assert main([*words.split(), "--system", "You are a helpful assistant."]) == 0
    shutil.copytree(run_of(world.here / "short") / "checkpoint-2", world.here / "output/vx-xxx/checkpoint-873")
    return world


def children_of(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


def test_the_line_of_the_contract(world: World) -> None:
    done = subprocess.run(
        [*SWIFT, *typed(INFER_VLLM)],
        input="Who are you?\nWhat is your name?\n",
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert "Starting vLLM" in done.stderr
    assert "Model: output/vx-xxx/checkpoint-873" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_command_leaves_no_vllm(world: World) -> None:
    line = f"{shlex.join(typed(INFER_VLLM))} --max_new_tokens 8 --vllm_enforce_eager true"
    with subprocess.Popen(
        [*SWIFT, *shlex.split(line)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as swift:
        assert swift.stdin is not None
        assert swift.stdout is not None
        swift.stdin.write(b"Who are you?\n")
        swift.stdin.flush()
        assert swift.stdout.read(1)  # it answers
        started = children_of(swift.pid)
        assert len(started) > 2
        folder = next(Path(word).parent for word in started[0].cmdline() if word.endswith("/socket"))
        os.kill(swift.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert not folder.exists()


def test_vllm_that_does_not_start_says_why(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    line = typed(INFER_VLLM.replace("8192", "99999"))
    start = time.monotonic()
    assert main(line) == 1
    err = capfd.readouterr().err
    assert "vLLM did not start" in err
    assert "99999" in err.split("did not start")[1]
    assert "Traceback" not in err.split("did not start")[0]
    assert time.monotonic() - start < 300


def test_a_server_answers_with_adapters_by_name(python: str, folders: Folders, tmp_path: Path) -> None:
    words = ["--infer_backend", "vllm", "--vllm_python", python, "--vllm_enforce_eager", "true", "--port", "0"]
    words += ["--vllm_max_model_len", "1024", "--torch_dtype", "float32", "--model", str(folders.model)]
    named = ["--adapters", f"first={folders.first}", f"second={folders.second}"]
    with (tmp_path / "said").open("w") as said:
        server = subprocess.Popen([*SWIFT, "deploy", *words, *named], stderr=said)
    try:
        while not (found := re.search(r"at (http://\S+)/v1", (tmp_path / "said").read_text())):
            assert server.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.2)
        with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="none", timeout=300) as client:
            for model, which in (("Tiny", "base"), ("first", "first"), ("second", "second")):
                answer = client.completions.create(model=model, prompt=PROMPTS[:8], max_tokens=24, temperature=0)
                expected = by_transformers(folders, which)[:8]
                assert [choice.text for choice in answer.choices] == [text for _, text, _ in expected]
    finally:
        server.terminate()
        assert server.wait(120) == 143


def test_vllm_serves_an_exported_folder_by_itself(merged: VllmEngine) -> None:
    """What ``vllm serve FOLDER`` starts is what the engine has started; asked here in OpenAI's way."""
    import httpx2

    messages = [{"role": "user", "content": "Who are you?"}]
    question = {"model": "model", "messages": messages, "max_tokens": 8, "min_tokens": 8}
    transport = httpx2.HTTPTransport(uds=str(merged.server.socket))
    with httpx2.Client(transport=transport, base_url="http://vllm", timeout=None) as client:
        answer = client.post("/v1/chat/completions", json=question | {"temperature": 0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 8
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"
