from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from swiftune.config import InferArguments
from swiftune.errors import AdapterError, DataError, Interrupted, OutputError, UsageError
from swiftune.generate.conversation import Conversation
from swiftune.generate.transformers_engine import TransformersEngine
from swiftune.recipes.infer import infer
from tests import tiny

# PEFT asks a model by a name that Transformers has replaced.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

SYSTEM = "You are a helpful assistant."
ROWS: list[dict[str, Any]] = [
    {"query": "Who are you?", "response": "I am a helpful assistant."},
    {"instruction": "给出保持健康的三个建议", "output": "均衡饮食"},
    {"messages": [{"role": "user", "content": "1. 2. 3."}]},
    {"system": "Own.", "query": "a/b", "response": "a*b", "history": [["What can you do?", "Answer questions."]]},
    {"query": "def add(a, b):\n    return a + b\n" * 4, "response": "x"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def adapter(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random LoRA weights, as a run with --system leaves it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint-3"
    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config).save_pretrained(folder)
    recorded = {"model": str(tiny_qwen2), "system": SYSTEM, "torch_dtype": "float32", "template": "auto"}
    (folder / "args.json").write_text(json.dumps(recorded))
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def no_talk(*_: Any) -> None:
    raise AssertionError("a data set is answered without a chat")


def answers_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_chat_with_an_adapter_is_what_plain_peft_says(tiny_qwen2: Path, adapter: Path) -> None:
    said: list[str] = []

    def talk(conversation: Conversation, stream: bool) -> None:
        assert stream
        said.append("".join(conversation.ask("Who are you?")))
        said.append("".join(conversation.ask("What can you do?")))

    infer(InferArguments(adapters=[str(adapter)], temperature=0, max_new_tokens=12), talk)

    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_qwen2), adapter).eval()
    messages = [{"role": "system", "content": SYSTEM}]
    for question, answer in zip(["Who are you?", "What can you do?"], said, strict=True):
        messages.append({"role": "user", "content": question})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(written, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})


@pytest.mark.parametrize("batch", [1, 3])
def test_a_data_set_into_a_file(
    adapter: Path, rows: Path, tmp_path: Path, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "out.jsonl"
    infer(
        InferArguments(
            adapters=[str(adapter)],
            val_dataset=[str(rows)],
            result_path=str(path),
            max_batch_size=batch,
            max_new_tokens=8,
            temperature=0,
        ),
        no_talk,
    )
    lines = answers_in(path)
    assert [line["labels"] for line in lines] == ["I am a helpful assistant.", "均衡饮食", None, "a*b", "x"]
    assert [m["role"] for m in lines[3]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert lines[3]["prompt"].startswith("<|im_start|>system\nOwn.<|im_end|>\n")  # a row's own system prompt wins
    assert lines[0]["prompt"] == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    for line in lines:
        assert line["messages"][-1] == {"role": "assistant", "content": line["response"]}
        assert 0 < line["first_token_latency"] <= line["latency"]
        assert line["finish_reason"] in ("stop", "length")
        assert 0 < line["response_tokens"] <= 8 < line["prompt_tokens"]
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ("rows 5", "tokens/s", "rouge-1", "bleu-4", str(path.name)))


def test_batches_and_streams_answer_alike(
    adapter: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = {"temperature": 1.5, "top_p": 0.9, "max_new_tokens": 8, "seed": 5}
    responses = []
    for number, more in enumerate(({"max_batch_size": 1}, {"max_batch_size": 4}, {"stream": True})):
        path = tmp_path / f"{number}.jsonl"
        arguments = {"adapters": [str(adapter)], "dataset": [str(rows)], "result_path": str(path), **drawn, **more}
        infer(InferArguments(**arguments), no_talk)
        responses.append([line["response"] for line in answers_in(path)])
    assert responses[0] == responses[1] == responses[2]
    out = capsys.readouterr().out
    assert out.startswith(f"[QUERY] Who are you?\n[RESPONSE] {responses[0][0]}\n[LABELS] I am a helpful assistant.\n--")


def test_results_go_beside_the_checkpoint(adapter: Path, rows: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "checkpoint-3"))
    infer(InferArguments(adapters=[str(copy)], dataset=[f"{rows}#1"], max_new_tokens=2), no_talk)
    (file,) = (copy / "infer_result").iterdir()
    assert len(answers_in(file)) == 1


def test_rows_that_cannot_be_answered_are_accounted_for(
    tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    good, long = {"query": "Who are you?"}, {"query": "who are you? " * 200}
    data.write_text("\n".join([json.dumps(good), json.dumps(long), json.dumps({"text": "No question."}), "{oops"]))
    path = tmp_path / "out.jsonl"
    arguments = {"model": str(tiny_qwen2), "result_path": str(path), "max_new_tokens": 2, "max_length": 100}
    infer(InferArguments(dataset=[str(data)], **arguments), no_talk)
    assert len(answers_in(path)) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "4 rows read = 1 used + 3 set aside" in err
    aside = answers_in(path.with_suffix(".set_aside.jsonl"))
    assert sorted((row["line"], row["reason"]) for row in aside) == [
        (2, "prompt longer than there is room"),
        (3, "no question to be answered"),
        (4, "not valid JSON"),
    ]
    data.write_text(json.dumps(long))
    with pytest.raises(DataError, match="No row could be answered"):
        infer(InferArguments(dataset=[str(data)], **arguments), no_talk)


def test_ctrl_c_keeps_what_is_done(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    generate = TransformersEngine.generate

    def interrupted(self: TransformersEngine, requests: Any) -> Iterator[Any]:
        if path.exists() and len(answers_in(path)) == 2:
            raise KeyboardInterrupt
        yield from generate(self, requests)

    monkeypatch.setattr(TransformersEngine, "generate", interrupted)
    with pytest.raises(Interrupted, match="2 of 5 rows are answered") as caught:
        infer(
            InferArguments(model=str(tiny_qwen2), dataset=[str(rows)], result_path=str(path), max_new_tokens=2), no_talk
        )
    assert caught.value.exit_code == 130
    assert len(answers_in(path)) == 2


def test_validation_rows_of_the_run(adapter: Path, rows: Path, tmp_path: Path) -> None:
    from swiftune.data.ledger import Ledger
    from swiftune.data.load import load_samples, split

    rows.write_text("".join(json.dumps({"query": f"{i}?", "response": f"{i}"}) + "\n" for i in range(20)))
    run = Path(shutil.copytree(adapter, tmp_path / "checkpoint-3"))
    recorded = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(
        json.dumps(recorded | {"dataset": [str(rows)], "split_dataset_ratio": 0.2, "data_seed": 7})
    )
    path = tmp_path / "out.jsonl"
    infer(InferArguments(adapters=[str(run)], load_data_args=True, result_path=str(path), max_new_tokens=1), no_talk)
    _, held_back = split(load_samples([str(rows)], Path, ledger=Ledger(), seed=7), 0.2, 7)
    assert [line["labels"] for line in answers_in(path)] == [s.messages[-1]["content"] for s in held_back]
    assert len(held_back) == 4


@pytest.mark.parametrize("path", ["/proc/no/out.jsonl", "."])
def test_a_result_path_that_cannot_be_written(tiny_qwen2: Path, rows: Path, path: str) -> None:
    with pytest.raises(OutputError, match="--result_path"):
        infer(InferArguments(model=str(tiny_qwen2), dataset=[str(rows)], result_path=path), no_talk)


def test_an_adapter_of_another_base(adapter: Path, tmp_path: Path) -> None:
    other = tiny.make_model(tmp_path / "Tiny-Wide", hidden=128)
    with pytest.raises(AdapterError) as caught:
        infer(InferArguments(adapters=[str(adapter)], model=str(other)), no_talk)
    assert caught.value.exit_code == UsageError.exit_code
    assert caught.value.cure
