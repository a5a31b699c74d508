"""bitsandbytes on a CPU: copies in few bits, and adapters trained on them (QLoRA)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from swiftune.generate import parity
from swiftune.runtime import optional
from swiftune.types import Row
from tests.recipes.chats import chats, log_of, run_of, sft, swift, write_jsonl
from tests.recipes.test_export import FAST, opened, record

pytest.importorskip("bitsandbytes")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes"),
]
SYSTEM = "You are a helpful assistant."


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", chats(60))


@pytest.fixture(scope="module")
def qlora(tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was trained on a base in four bits."""
    out = tmp_path_factory.mktemp("out")
    flags = {"model": tiny_llama, "dataset": data, "system": SYSTEM, "output_dir": out, **FAST}
    assert sft(flags, quant_method="bnb", quant_bits=4, max_steps=12) == 0
    return run_of(out) / "checkpoint-12"


@pytest.mark.parametrize(("bits", "share"), [(8, 0.75), (4, 0.65)])
def test_a_quantized_copy_with_its_price(
    bits: int, share: float, tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small"
    words = ["--model", tiny_llama, "--dataset", data, "--system", SYSTEM, "--output_dir", target]
    assert swift("export", *words, "--quant_method", "bnb", "--quant_bits", bits) == 0
    quant, err = record(target, "quant.json"), capsys.readouterr().err
    assert quant["after"]["bytes"] < share * quant["before"]["bytes"]
    assert quant["before"]["bytes"] == pytest.approx((tiny_llama / "model.safetensors").stat().st_size, rel=0.01)
    assert quant["rows"] == 60
    assert quant["before"]["perplexity"] == pytest.approx(quant["after"]["perplexity"], rel=0.2)
    assert quant["before"]["perplexity"] != quant["after"]["perplexity"]
    assert 0 < quant["compared"]["kl_mean"] < 0.5
    assert record(target)["holds"] is True  # of the model in full that it was made from
    assert all(word in err for word in ("before", "after", "perplexity on 60 rows", "weights"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]
    assert json.loads((target / "config.json").read_text())["quantization_config"][f"load_in_{bits}bit"] is True
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert SYSTEM in tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    (said,) = pipeline("text-generation", model=str(target))([{"role": "user", "content": "Hello"}], max_new_tokens=3)
    assert said["generated_text"][-1]["role"] == "assistant"
    rows = write_jsonl(tmp_path / "q.jsonl", [{"query": "Who are you?"}])
    words = ["infer", "--model", target, "--val_dataset", rows, "--result_path", tmp_path / "a.jsonl"]
    line = [sys.executable, "-m", "swiftune.cli.main", *map(str, words), "--max_new_tokens", "4"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # nobody has asked it for bitsandbytes
    assert done.returncode == 0, done.stderr
    assert "kernels" not in done.stderr
    assert "MatMul8bitLt" not in done.stderr  # said by every layer in every pass


def test_training_on_four_bits_learns_and_says_so(qlora: Path) -> None:
    log = [line["loss"] for line in log_of(qlora.parent) if "loss" in line]
    assert log[-1] < 0.9 * log[0]
    args = json.loads((qlora / "args.json").read_text())
    assert (args["quant_method"], args["quant_bits"], args["bnb_4bit_quant_type"]) == ("bnb", 4, "nf4")
    said = (qlora.parent / "run.log").read_text()
    assert "over weights in 4 bits" in said


def test_a_quantized_base_is_counted_in_full(qlora: Path, tiny_llama: Path) -> None:
    own = sum(p.numel() for p in opened(tiny_llama).parameters())
    said = (qlora.parent / "run.log").read_text()
    total = int(said.split(" parameters are trained")[0].rsplit(" of ", 1)[1].replace(",", ""))
    assert own < total < 1.5 * own


def test_its_adapter_goes_onto_the_base_in_full(qlora: Path, tiny_llama: Path, tmp_path: Path) -> None:
    assert swift("export", "--adapters", qlora, "--merge_lora", "true", "--output_dir", tmp_path / "merged") == 0
    assert record(tmp_path / "merged")["greedy_tokens_equal"] == 1.0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert record(tmp_path / "merged")["dtype"] == "float32"


def test_infer_holds_the_base_as_training_did(qlora: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "q.jsonl", [{"query": "who are you"}])
    words = ["--val_dataset", rows, "--temperature", "0", "--max_new_tokens", "8", "--torch_dtype", "float32"]
    assert swift("infer", "--adapters", qlora, *words, "--result_path", tmp_path / "a.jsonl") == 0
    (line,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())

    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = json.loads((qlora / "args.json").read_text())["model"]
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, qlora).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(line["prompt"], add_special_tokens=False, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert line["response"] == tokenizer.decode(written, skip_special_tokens=True)


def test_perplexity_is_exp_of_the_mean_loss(tiny_llama: Path) -> None:
    import numpy as np

    model = opened(tiny_llama)
    ids_T = np.arange(20, dtype=np.int32)
    labels_T = np.where(ids_T < 5, -100, ids_T).astype(np.int32)
    tensor = torch.from_numpy(ids_T).long()[None]
    loss = model(input_ids=tensor, labels=torch.from_numpy(labels_T).long()[None]).loss.item()
    assert parity.perplexity(model, [Row(ids_T, labels_T, (20,))]) == pytest.approx(math.exp(loss), rel=1e-5)


def test_bitsandbytes_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from swiftune.runtime import optional\n"
        "optional.put_off('bitsandbytes'); import peft, transformers\n"
        "assert sys.modules['bitsandbytes'] is None\n"
        "from peft.import_utils import is_bnb_available; assert not is_bnb_available()\n"
        "optional.bring('bitsandbytes', '--quant_method bnb'); assert is_bnb_available()\n"
        "from peft.tuners.lora import Linear4bit\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_full_tuning_of_quantized_weights_is_refused(
    tiny_llama: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: dict[str, Any] = {"model": tiny_llama, "dataset": data, "output_dir": tmp_path / "out"}
    assert sft(flags, train_type="full", quant_method="bnb") == 2
    assert "--train_type full and --quant_method bnb are at odds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optional, "find_spec", lambda name: None)
    flags: dict[str, Any] = {"model": tiny_llama, "dataset": data, "output_dir": tmp_path / "out"}
    assert sft(flags, quant_method="bnb") == 1
    assert "pip install 'swiftune[bnb]'" in capsys.readouterr().err
