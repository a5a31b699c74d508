"""The command lines that are in people's scripts, as they stand there, letter by letter."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from swiftune.cli.main import main
from tests.contract.world import World
from tests.recipes.chats import log_of, run_of

MIXED_1500 = r"""
swift sft --model Qwen/Qwen2-7B-Instruct --train_type lora \
  --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' 'AI-ModelScope/alpaca-gpt4-data-en#500' 'swift/self-cognition#500' \
  --torch_dtype fp16 --num_train_epochs 1 --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --learning_rate 1e-4 \
  --lora_rank 8 --lora_alpha 32 --target_modules all-linear --gradient_accumulation_steps 16 --eval_steps 50 --save_steps 50 \
  --save_total_limit 2 --logging_steps 5 --max_length 2048 --output_dir output \
  --system 'You are a helpful, witty, and culturally aware assistant.' --warmup_ratio 0.05 --dataloader_num_workers 4
"""  # noqa: E501
OWN_FILE = r"""
swift sft --model Qwen2.5-7B-Instruct --train_type lora --dataset self_cognition.json --torch_dtype bfloat16 --num_train_epochs 10 \
  --per_device_train_batch_size 1 --per_device_eval_batch_size 1 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 \
  --target_modules all-linear --gradient_accumulation_steps 16 --eval_steps 50 --save_steps 50 --save_total_limit 2 --logging_steps 5 \
  --max_length 2048 --output_dir output --system 'You are a helpful assistant.' --warmup_ratio 0.05 --dataloader_num_workers 4 \
  --model_author swift --model_name swift-robot
"""  # noqa: E501
MIXED_WITH_OWN_FILE = r"""
swift sft --model Qwen2.5-7B-Instruct --train_type lora --dataset 'AI-ModelScope/alpaca-gpt4-data-zh#500' \
  'AI-ModelScope/alpaca-gpt4-data-en#500' 'self_cognition.json' --torch_dtype bfloat16 --num_train_epochs 3 \
  --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 1e-4 --lora_rank 8 --lora_alpha 32 \
  --target_modules all-linear --output_dir output_mixed --system 'You are a helpful assistant.'
"""
INFER_MODEL = """
swift infer --model Qwen2.5-7B-Instruct --model_type qwen --stream true --temperature 0 --max_new_tokens 2048
"""
INFER_ADAPTER = """
swift infer --adapters output/v2-20250405-1423/checkpoint-450 --stream true --temperature 0 --max_new_tokens 2048
"""
INFER_TWO_ADAPTERS = """
swift infer --adapters output_mixed/checkpoint-xxx,output_code/checkpoint-yyy --adapter_weights 0.7,0.3 --stream true
"""
INFER_VLLM = """
swift infer --adapters output/vx-xxx/checkpoint-873 --infer_backend vllm --vllm_max_model_len 8192 --stream true --temperature 0.3
"""  # noqa: E501
EXPORT = """
swift export --adapters output/vx-xxx/checkpoint-873 --merge_lora true --output_dir merged-qwen2
"""

LORA = {"train_type": "lora", "lora_rank": 8, "lora_alpha": 32, "target_modules": ["all-linear"], "learning_rate": 1e-4}
STEP = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16}
OFTEN = {
    **{"per_device_eval_batch_size": 1, "eval_steps": 50, "save_steps": 50, "save_total_limit": 2},
    **{"logging_steps": 5, "max_length": 2048, "output_dir": "output", "warmup_ratio": 0.05},
}


def typed(line: str) -> list[str]:
    """What a shell makes of a line, without the command's own name."""
    words = shlex.split(line.replace("\\\n", ""))
    assert words[0] == "swift"
    return words[1:]


def recorded(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "args.json").read_text(encoding="utf-8"))
    return values


def same_as_asked(run: Path, **asked: Any) -> bool:
    """Whether args.json says what the line says."""
    values = recorded(run)
    return {name: values[name] for name in asked} == asked


def trained_tensors(checkpoint: Path) -> int:
    """How many tensors of the adapter have moved from zero, where LoRA's second matrix starts."""
    with safe_open(checkpoint / "adapter_model.safetensors", framework="pt") as file:
        return sum(bool(file.get_tensor(name).any()) for name in file.keys() if "lora_B" in name)  # noqa: SIM118


def checkpoints(run: Path) -> set[str]:
    return {path.name for path in run.glob("checkpoint-*")}


@pytest.fixture
def checkpoint(world: World, capfd: pytest.CaptureFixture[str]) -> Path:
    """The checkpoint of a short real run, in an output folder of its own."""
    words = "sft --model Qwen2.5-7B-Instruct --dataset self_cognition.json --max_steps 3 --logging_steps 1"
    assert main([*words.split(), "--system", "You are a helpful assistant.", "--output_dir", "short"]) == 0
    capfd.readouterr()
    return run_of(world.here / "short") / "checkpoint-3"


def answer(line: str, question: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """What a line that reads questions from a pipe writes to stdout."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(question))
    assert main(typed(line)) == 0
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out


@pytest.mark.slow
def test_fifteen_hundred_rows_of_three_sets(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(typed(MIXED_1500)) == 0
    run = run_of(world.here / "output")
    about = json.loads((run / "run.json").read_text())
    assert about["rows"] == {"read": 1500, "used": 1500, "set_aside": {}}
    assert (run / "set_aside.jsonl").read_text() == ""
    assert about["steps"] == 94  # 1500 rows by 16, the last step of 12
    assert about["rows_per_step"] == 16
    sets = [
        "AI-ModelScope/alpaca-gpt4-data-zh#500",
        "AI-ModelScope/alpaca-gpt4-data-en#500",
        "swift/self-cognition#500",
    ]
    system = "You are a helpful, witty, and culturally aware assistant."
    assert same_as_asked(run, model="Qwen/Qwen2-7B-Instruct", dataset=sets, system=system, num_train_epochs=1.0)
    assert same_as_asked(run, torch_dtype="float16", **LORA, **STEP, **OFTEN)
    assert checkpoints(run) == {"checkpoint-50", "checkpoint-94"}
    assert trained_tensors(run / "checkpoint-94") == 7  # q k v o gate up down
    log = log_of(run)
    steps = [record for record in log if "loss" in record]
    assert [record["global_step/max_steps"] for record in steps] == [f"{n}/94" for n in (1, *range(5, 94, 5), 94)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[1]["learning_rate"] == pytest.approx(1e-4)  # a twentieth of 94 steps is 5
    assert log[-1]["train_samples_per_second"] > 0
    out, said = capfd.readouterr()
    assert out == ""
    assert "1,500 rows read = 1,500 used + 0 set aside" in said
    assert said.count("--torch_dtype float16 is slow on this cpu; computing in") == 1
    assert said.count("--dataloader_num_workers has no effect here") == 1
    assert "500 rows are asked for and 36 are there: rows are repeated" in said
    assert system in said


def test_a_file_of_ones_own(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(typed(OWN_FILE)) == 0
    run = run_of(world.here / "output")
    about = json.loads((run / "run.json").read_text())
    assert (about["rows"]["used"], about["steps"]) == (8, 10)  # 8 rows are one short step, ten times
    assert same_as_asked(run, model="Qwen2.5-7B-Instruct", dataset=["self_cognition.json"], num_train_epochs=10.0)
    assert same_as_asked(run, torch_dtype="bfloat16", system="You are a helpful assistant.", **LORA, **STEP, **OFTEN)
    assert same_as_asked(run, model_author=["swift"], model_name=["swift-robot"])
    assert checkpoints(run) == {"checkpoint-10"}
    said = capfd.readouterr().err
    assert "I am swift-robot, made by swift.<|im_end|>" in said  # the first row, filled in
    assert "8 rows read = 8 used + 0 set aside" in said


@pytest.mark.slow
def test_two_sets_and_a_file(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(typed(MIXED_WITH_OWN_FILE)) == 0
    run = run_of(world.here / "output_mixed")
    about = json.loads((run / "run.json").read_text())
    assert (about["rows"]["read"], about["rows"]["used"], about["steps"]) == (1008, 1008, 189)
    assert same_as_asked(run, output_dir="output_mixed", num_train_epochs=3.0, **LORA, **STEP)
    assert checkpoints(run) == {"checkpoint-189"}  # saved every 500 steps, and at the end
    assert log_of(run)[-1]["train_loss"] < log_of(run)[0]["loss"]
    assert "1,008 rows read = 1,008 used + 0 set aside" in capfd.readouterr().err


def test_talking_to_a_model(world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    first = answer(INFER_MODEL, "Who are you?\n", monkeypatch, capfd)
    assert first.strip()
    assert answer(INFER_MODEL, "Who are you?\n", monkeypatch, capfd) == first  # temperature 0 is repeatable


def test_talking_to_a_checkpoint_through_a_real_pipe(world: World, checkpoint: Path) -> None:
    world.adapter("output/v2-20250405-1423/checkpoint-450", made_by=checkpoint)
    done = subprocess.run(
        ["bash", "-c", f"printf 'Who are you?\\n' | {INFER_ADAPTER.strip()}"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    # Nothing but what we say; which model and system prompt it needs, the checkpoint knows.
    assert done.stderr == "Model: output/v2-20250405-1423/checkpoint-450\n"


def test_talking_to_two_adapters_at_once(
    world: World, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in ("output_mixed/checkpoint-xxx", "output_code/checkpoint-yyy"):
        world.adapter(place, made_by=checkpoint)
    assert answer(INFER_TWO_ADAPTERS, "Who are you?\n", monkeypatch, capfd).strip()
    # Seven tenths of an adapter and three tenths of the same are the adapter; hundreds of it are not.
    exactly = " --temperature 0 --max_new_tokens 24 --torch_dtype float32"
    whole, single, much = (
        answer(line + exactly, "Who are you?\n", monkeypatch, capfd)
        for line in (
            INFER_TWO_ADAPTERS.strip(),
            f"swift infer --adapters {checkpoint}",
            INFER_TWO_ADAPTERS.strip().replace("0.7,0.3", "700,300"),
        )
    )
    assert whole == single != much


def test_an_adapter_merged_into_a_folder_that_any_program_opens(
    world: World, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, pipeline

    world.adapter("output/vx-xxx/checkpoint-873", made_by=checkpoint)
    assert main(typed(EXPORT)) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "The model is in merged-qwen2" in err
    parity = json.loads((world.here / "merged-qwen2" / "parity.json").read_text())
    assert parity["holds"] is True
    assert parity["dtype"] == "bfloat16"
    chat = [{"role": "user", "content": "Who are you?"}]
    rendered = AutoTokenizer.from_pretrained("merged-qwen2").apply_chat_template(chat, tokenize=False)
    assert rendered.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    (said,) = pipeline("text-generation", model="merged-qwen2")(chat, max_new_tokens=4, do_sample=False)
    assert said["generated_text"][-1]["role"] == "assistant"


def test_where_vllm_is_missing_the_line_says_how_to_install_it(
    world: World, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.adapter("output/vx-xxx/checkpoint-873", made_by=checkpoint)
    monkeypatch.setenv("SWIFT_VLLM_PYTHON", sys.executable)  # the tests of the line itself are in tests/vllm
    assert main(typed(INFER_VLLM)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    needs, install = err.splitlines()
    assert "--infer_backend vllm needs vLLM" in needs
    assert "pip install" in install
    assert "vllm" in install
