"""What ``swift deploy --infer_backend vllm`` tells vLLM; how that answers: tests/vllm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.generate.stand_in import stand_in, words_of
from tests.serve.conftest import Server, Start


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return stand_in(tmp_path)


def following(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


def models(server: Server) -> list[str]:
    listed = [model.id for model in server.client.models.list()]
    assert server.stop() == 143
    return listed


def test_named_adapters_count_by_themselves(start: Start, adapters: Path, python: Path) -> None:
    both = [f"default={adapters / 'code'}", f"chat={adapters / 'chat'}"]
    server = start("--infer_backend", "vllm", "--vllm_python", str(python), "--adapters", *both)
    assert models(server) == ["Tiny-Qwen2", "default", "chat"]
    words = words_of(python)
    assert following(words, "--max-lora-rank") == "8"
    assert following(words, "--max-loras") == "2"
    assert following(words, "--max-num-seqs") is None


def test_adapters_that_come_later_have_room(start: Start, adapters: Path, python: Path) -> None:
    flags = ("--vllm_max_lora_rank", "4", "--adapter_dirs", str(adapters), "--max_adapters", "3")
    lead = ("--adapters", str(adapters / "code"), f"default={adapters / 'chat'}")
    server = start("--infer_backend", "vllm", "--vllm_python", str(python), "--max_batch_size", "5", *flags, *lead)
    late = server.post("/v1/load_lora_adapter", {"lora_name": "late", "lora_path": "chat"})
    assert late.status_code == 200, late.text
    assert models(server) == ["code", "Tiny-Qwen2", "default", "late"]
    words = words_of(python)
    assert following(words, "--max-loras") == "3"
    assert following(words, "--max-num-seqs") == "5"


def test_it_is_said_that_the_run_held_its_base_in_few_bits(
    start: Start, adapters: Path, python: Path, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "code", tmp_path / "code")
    recorded = json.loads((tmp_path / "code" / "args.json").read_text())
    (tmp_path / "code" / "args.json").write_text(json.dumps(recorded | {"quant_method": "bnb", "quant_bits": 8}))
    server = start("--infer_backend", "vllm", "--vllm_python", str(python), "--adapters", str(tmp_path / "code"))
    assert "by --quant_method bnb in 8 bits; vLLM takes the weights as they are" in " ".join(server.said.split())
    assert server.stop() == 143
