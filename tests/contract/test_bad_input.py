"""What a user may get wrong, and the answer: an exit code, the place, the cure, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from swiftune.cli.main import main
from tests import tiny
from tests.contract.world import World, identity_rows
from tests.recipes.chats import run_of, write_jsonl

MODEL = "Qwen2.5-7B-Instruct"


@dataclass(frozen=True)
class Shop:
    """Things to get wrong, in the working directory."""

    world: World
    capfd: pytest.CaptureFixture[str]

    def swift(self, line: str) -> tuple[int, str]:
        """The exit code, and what was said on stderr. Words are parted by blanks."""
        self.capfd.readouterr()
        code = main(line.split())
        return code, self.capfd.readouterr().err

    def write(self, name: str, content: str | bytes) -> None:
        path = self.world.here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def model(self, name: str) -> Path:
        """A copy of the model, to be damaged."""
        return Path(shutil.copytree(self.world.mirror / "Qwen" / MODEL, self.world.here / name))

    def trained(self, output_dir: str = "made", model: str = MODEL) -> Path:
        """The folder of a real run of two steps."""
        flags = f"--model {model} --dataset good.json --max_steps 2 --save_steps 1 --output_dir {output_dir}"
        assert self.swift(f"sft {flags}")[0] == 0
        return run_of(self.world.here / output_dir)


@pytest.fixture
def shop(world: World, capfd: pytest.CaptureFixture[str]) -> Shop:
    there = Shop(world, capfd)
    there.write("good.json", json.dumps(identity_rows()))
    return there


def sft(rest: str) -> str:
    return f"sft --model {MODEL} --output_dir output {rest}"


@dataclass(frozen=True)
class Case:
    """A line, what is made before it, and what the answer must hold."""

    line: str
    says: tuple[str, ...]
    make: Callable[[Shop], Any] = field(default=lambda shop: None)
    code: int = 2


def rows_of(**row: Any) -> Callable[[Shop], Any]:
    return lambda shop: write_jsonl(shop.world.here / "bad.jsonl", [row, row])


def text_is(value: Any) -> Callable[[Shop], Any]:
    return rows_of(messages=[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": value}])


def _broken_on_line_37(shop: Shop) -> None:
    lines = [json.dumps({"query": "a", "response": "b"})] * 40
    lines[35] = '{"query": "a", '  # "[" is the first line
    shop.write("bad.json", "[\n" + ",\n".join(lines) + "\n]")


ARGUMENTS = {
    "unknown flag": Case(sft("--dataset good.json --lora_rnk 8"), ("--lora_rnk", "did you mean --lora_rank?")),
    "a word for a number": Case(sft("--dataset good.json --lora_rank eight"), ("--lora_rank", "whole number", "eight")),
    "a number out of range": Case(sft("--dataset good.json --lora_dropout 1.5"), ("--lora_dropout", "1.5")),
    "neither true nor false": Case(sft("--dataset good.json --streaming maybe"), ("--streaming", "true or false")),
    "no such choice": Case(sft("--dataset good.json --train_type lara"), ("--train_type", "did you mean lora?")),
    "all at once": Case(sft("--lora_rnk 8 --max_length x"), ("--lora_rnk", "--max_length", "--dataset is missing")),
    "no data set": Case(sft(""), ("--dataset is missing",)),
    "broken YAML": Case(
        "sft --config run.yaml",
        ("run.yaml:3", "not YAML"),
        lambda shop: shop.write("run.yaml", "model: x\ndataset: [good.json\nlora_rank: 8\n"),
    ),
    "unknown key in YAML": Case(
        "sft --config run.yaml",
        ("run.yaml", "lora_rnk", "did you mean --lora_rank?"),
        lambda shop: shop.write("run.yaml", "dataset: good.json\nlora_rnk: 8\n"),
    ),
    "no such YAML": Case("sft --config none.yaml", ("none.yaml",)),
    "#0": Case(sft("--dataset good.json#0"), ("good.json#0", "positive number", "#500")),
    "#-3": Case(sft("--dataset good.json#-3"), ("good.json#-3", "positive number", "#500")),
    "#abc": Case(sft("--dataset good.json#abc"), ("good.json#abc", "positive number", "#500")),
    "#0%": Case(sft("--dataset good.json#0%"), ("good.json#0%", "positive percentage")),
}

DATA = {
    "no such file": Case(sft("--dataset goood.json"), ("goood.json", "not found", "Did you mean", "good.json")),
    "an empty file": Case(sft("--dataset bad.json"), ("bad.json", "no rows"), lambda shop: shop.write("bad.json", "")),
    "an empty list": Case(sft("--dataset bad.json"), ("bad.json", "no row"), lambda shop: shop.write("bad.json", "[]")),
    "line 37 is no JSON": Case(
        sft("--dataset bad.json"), ("bad.json:37", "JSON", "Mend that line"), _broken_on_line_37
    ),
    "a folder without data": Case(
        sft("--dataset folder"), ("folder", "json"), lambda shop: shop.write("folder/README.md", "# none")
    ),
    "unknown columns": Case(
        sft("--dataset bad.jsonl"), ("bad.jsonl", "frage", "antwort", "--columns"), rows_of(frage="a", antwort="b")
    ),
    "null for text": Case(sft("--dataset bad.jsonl"), ("bad.jsonl:1", "null"), text_is(None)),
    "a number for text": Case(sft("--dataset bad.jsonl"), ("bad.jsonl:1", "number"), text_is(7)),
    "a list for text": Case(sft("--dataset bad.jsonl"), ("bad.jsonl:1"), text_is([1, 2])),
    "null for an answer": Case(
        sft("--dataset bad.jsonl"), ("bad.jsonl:1", "null"), rows_of(instruction="a", input="", output=None)
    ),
    "a number for an answer": Case(
        sft("--dataset bad.jsonl"), ("bad.jsonl:1", "number"), rows_of(query="a", response=3)
    ),
    "no assistant": Case(
        sft("--dataset bad.jsonl"),
        ("bad.jsonl:1", "assistant"),
        rows_of(messages=[{"role": "user", "content": "Who?"}]),
    ),
    "Latin-1": Case(
        sft("--dataset bad.jsonl"),
        ("bad.jsonl:1", "UTF-8"),
        lambda shop: shop.write(
            "bad.jsonl", '{"query": "Qui \u00eates-vous ?", "response": "Moi"}\n'.encode("latin-1")
        ),
    ),
    "too short a max_length": Case(sft("--dataset good.json --max_length 4"), ("max_length", "4", "truncation")),
    "no such data set": Case(
        sft("--dataset org/nowhere"), ("org/nowhere", "not found", "mirror", "ModelScope", "SWIFT_LOCAL_HUB")
    ),
    "too short a max_length for a stream": Case(
        sft("--dataset good.json --max_length 4 --streaming true --max_steps 2"), ("max_length", "4", "truncation")
    ),
    "bad rows to evaluate on": Case(
        sft("--dataset good.json --val_dataset bad.jsonl"), ("bad.jsonl", "frage"), rows_of(frage="a", antwort="b")
    ),
}


def damaged(change: Callable[[Path], Any]) -> Callable[[Shop], Any]:
    return lambda shop: change(shop.model("model"))


def without(*names: str) -> Callable[[Shop], Any]:
    return damaged(lambda folder: [(folder / name).unlink() for name in names])


def _truncate(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate((folder / "model.safetensors").stat().st_size // 2)


def _other_sizes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


OWN = "sft --model model --output_dir output --dataset good.json"
MODELS = {
    "no weights": Case(OWN, ("model", "no weights", "safetensors"), without("model.safetensors")),
    "only a pickle": Case(OWN, ("pytorch_model.bin", "pickle", "not read"), damaged(_pickle_only)),
    "truncated weights": Case(OWN, ("model.safetensors", "truncated", "Fetch the model again"), damaged(_truncate)),
    "no config": Case(OWN, ("no config.json",), without("config.json")),
    "broken config": Case(
        OWN, ("config.json", "cannot be read"), damaged(lambda f: (f / "config.json").write_text('{"model_type": '))
    ),
    "config of no model": Case(
        OWN, ("config.json", "model_type"), damaged(lambda f: (f / "config.json").write_text("{}"))
    ),
    "config of an unknown model": Case(
        OWN, ("model", "martian"), damaged(lambda f: (f / "config.json").write_text('{"model_type": "martian"}'))
    ),
    "weights of another size": Case(OWN, ("model", "size"), damaged(_other_sizes)),
    "no tokenizer": Case(OWN, ("model", "tokenizer"), without("tokenizer.json", "tokenizer_config.json")),
    "a file for a model": Case("sft --model good.json --dataset good.json", ("good.json", "folder")),
    "no such model": Case(
        "sft --model org/nowhere --dataset good.json",
        ("org/nowhere", "not found", "path", "built-in", "mirror", "ModelScope's cache", "Hugging Face's cache"),
    ),
    "no such model to talk to": Case("infer --model org/nowhere", ("org/nowhere", "not found", "mirror")),
}

FOLDERS = {
    "a file for an output folder": Case(
        f"sft --model {MODEL} --dataset good.json --output_dir good.json", ("--output_dir good.json",), code=1
    ),
    "a log folder below a file": Case(sft("--dataset good.json --logging_dir good.json/a"), ("--logging_dir",), code=1),
    "below a file": Case(
        f"sft --model {MODEL} --dataset good.json --output_dir good.json/runs", ("--output_dir good.json/runs",), code=1
    ),
    "a read-only place": Case(
        f"sft --model {MODEL} --dataset good.json --output_dir /proc/output", ("--output_dir /proc/output",), code=1
    ),
    "no such checkpoint": Case(
        sft("--dataset good.json --resume_from_checkpoint none/checkpoint-1"),
        ("--resume_from_checkpoint none/checkpoint-1", "no such folder", "true"),
    ),
    "no run to resume": Case(
        sft("--dataset good.json --resume_from_checkpoint true"), ("--resume_from_checkpoint", "no whole checkpoint")
    ),
    "a model for an adapter": Case(
        sft("--dataset good.json --adapters model"),
        ("--adapters model", "whole model", "--model model"),
        lambda s: s.model("model"),
    ),
    "a model for an adapter to talk to": Case(
        "infer --adapters model", ("--adapters model", "whole model", "--model model"), lambda s: s.model("model")
    ),
    "full training from an adapter's checkpoint": Case(
        sft("--dataset good.json --train_type full --resume_from_checkpoint lora --resume_only_model true"),
        ("lora", "adapter"),
        lambda s: s.write("lora/adapter_config.json", '{"peft_type": "LORA"}'),
    ),
    "a module that is not there": Case(
        sft("--dataset good.json --target_modules nope"), ("--target_modules", "nope", "q_proj")
    ),
    "no such adapter": Case(sft("--dataset good.json --adapters none/checkpoint-1"), ("--adapters none/checkpoint-1",)),
    "an adapter for a model": Case(
        "infer --model adapter",
        ("adapter", "--adapters adapter"),
        lambda s: s.write("adapter/adapter_config.json", '{"peft_type": "LORA"}'),
    ),
    "an unwritable result": Case(
        f"infer --model {MODEL} --val_dataset good.json --max_new_tokens 1 --result_path good.json/answers.jsonl",
        ("--result_path", "good.json/answers.jsonl"),
        code=1,
    ),
}
CASES = {**ARGUMENTS, **DATA, **MODELS, **FOLDERS}


def assert_answered(code: int, said: str, case: Case) -> None:
    assert code == case.code, said
    assert "Traceback" not in said
    assert "fault of Swiftune" not in said
    last = said[said.index("error: ") :]
    assert all(word in last for word in case.says), said
    assert len(last) < 2000


@pytest.mark.parametrize("name", CASES)
def test_mistakes_are_answered(shop: Shop, name: str) -> None:
    case = CASES[name]
    case.make(shop)
    code, said = shop.swift(case.line)
    assert_answered(code, said, case)
    assert not list(shop.world.here.glob("output/*")), "half a run was left"


@pytest.mark.parametrize("name", ["unknown flag", "line 37 is no JSON", "truncated weights", "a read-only place"])
def test_a_process_of_its_own_answers_the_same(shop: Shop, name: str) -> None:
    case = CASES[name]
    case.make(shop)
    command = [sys.executable, "-m", "swiftune.cli.main", *case.line.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert_answered(done.returncode, done.stderr, case)
    assert done.stdout == ""


def test_a_model_without_template_asks_for_one_and_takes_it(shop: Shop) -> None:
    folder = tiny.make_model(shop.world.here / "model", layers=1, hidden=32, template="")
    assert not (folder / "chat_template.jinja").exists()
    code, said = shop.swift(OWN)
    assert_answered(code, said, Case(OWN, ("chat template", "--template chatml")))
    assert shop.swift(f"{OWN} --template chatml --max_steps 1")[0] == 0
    shop.write("own.jinja", tiny.QWEN2_TEMPLATE)
    assert shop.swift(f"{OWN} --template own.jinja --max_steps 1")[0] == 0
    code, said = shop.swift("infer --model model --val_dataset good.json --max_new_tokens 1")
    assert_answered(code, said, Case("", ("chat template", "--template chatml")))


def test_an_adapter_of_another_base(shop: Shop) -> None:
    adapter = shop.trained() / "checkpoint-2"
    tiny.make_model(shop.world.here / "other", layers=1, hidden=48)
    for line in (
        f"sft --model other --output_dir output --dataset good.json --adapters {adapter}",
        f"infer --model other --adapters {adapter}",
        f"sft --model other --output_dir output --dataset good.json --resume_from_checkpoint {adapter}",
    ):
        code, said = shop.swift(line)
        assert_answered(code, said, Case(line, (str(adapter), "--model")))
    assert not list(shop.world.here.glob("output/*"))


@pytest.mark.parametrize(
    "lost", ["trainer_state.json", "optimizer.safetensors", "adapter_model.safetensors", "adapter_config.json"]
)
def test_a_checkpoint_that_is_not_whole(shop: Shop, lost: str) -> None:
    run = shop.trained()
    (run / "checkpoint-2" / lost).unlink()
    line = f"sft --model {MODEL} --dataset good.json --output_dir output"
    code, said = shop.swift(f"{line} --resume_from_checkpoint {run}/checkpoint-2")
    assert_answered(code, said, Case("", ("checkpoint-2", lost)))
    assert not list(shop.world.here.glob("output/*"))


@pytest.mark.parametrize("damaged", ["trainer_state.json", "optimizer.safetensors", "adapter_model.safetensors"])
def test_a_checkpoint_that_was_cut_short(shop: Shop, damaged: str) -> None:
    run = shop.trained()
    file = run / "checkpoint-2" / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    line = f"sft --model {MODEL} --dataset good.json --output_dir output"
    code, said = shop.swift(f"{line} --resume_from_checkpoint {run}/checkpoint-2")
    assert_answered(code, said, Case("", (damaged,)))
    assert not list(shop.world.here.glob("output/*"))


def test_a_checkpoint_of_another_optimizer(shop: Shop) -> None:
    run = shop.trained()
    line = f"sft --model {MODEL} --dataset good.json --output_dir output --optim sgd"
    code, said = shop.swift(f"{line} --resume_from_checkpoint {run}/checkpoint-1")
    assert_answered(code, said, Case("", ("checkpoint-1", "--optim")))
    assert not list(shop.world.here.glob("output/*"))


def test_resuming_passes_over_what_is_not_whole(shop: Shop) -> None:
    run = shop.trained()
    shutil.copytree(run / "checkpoint-2", run / ".checkpoint-3.partial")
    (run / "checkpoint-2" / "trainer_state.json").unlink()
    line = f"sft --model {MODEL} --dataset good.json --output_dir made --max_steps 3 --logging_steps 1"
    code, said = shop.swift(f"{line} --resume_from_checkpoint true --resume_anyway true")
    assert code == 0, said
    assert "global_step/max_steps: 2/3" in said


def test_a_hub_out_of_reach_is_said_soon(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    code, said = shop.swift("sft --model org/nowhere --dataset good.json")
    assert time.monotonic() - began < 15
    assert_answered(code, said, Case("", ("org/nowhere", "mirror", "ModelScope", "did not answer")))
