"""More mistakes, of the kinds that users of ms-swift, LLaMA-Factory, axolotl and TRL report: the same is asked of them
as in ``test_bad_input``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.contract import test_bad_input
from tests.contract.test_bad_input import (
    OWN,
    Case,
    Shop,
    assert_answered,
    damaged,
    rows_of,
    sft,
)
from tests.recipes.chats import log_of, run_of, write_jsonl

shop = test_bad_input.shop
BAD = sft("--dataset bad.jsonl")
GOOD_ROW = {"query": "Who are you?", "response": "A helpful assistant."}
ALPACA = {"instruction": "Who are you?", "input": "", "output": "A helpful assistant."}
USER = {"role": "user", "content": "Who?"}


def file_is(name: str, content: str | bytes) -> Callable[[Shop], Any]:
    return lambda shop: shop.write(name, content)


def chat_of(*messages: Any) -> Callable[[Shop], Any]:
    return rows_of(messages=list(messages))


def some_bad(count: int, of: int) -> Callable[[Shop], Any]:
    rows = [GOOD_ROW | ({"response": None} if number < count else {}) for number in range(of)]
    return lambda shop: write_jsonl(shop.world.here / "bad.jsonl", rows)


def lfs_pointer(size: int) -> str:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n"


ROWS = {
    "rows of a reward set": Case(
        BAD, ("bad.jsonl:1", "no column with an answer", "solutions"), rows_of(prompt="6 x 7?", solutions=["42"])
    ),
    "preferences without a prompt": Case(BAD, ("bad.jsonl:1", "without a question"), rows_of(chosen="a", rejected="b")),
    "preferences that are null": Case(
        BAD, ("bad.jsonl:1", "chosen is null"), rows_of(prompt="a", chosen=None, rejected="b")
    ),
    "a role misspelt": Case(
        BAD,
        ("bad.jsonl:1", "hummany", "known", "human"),
        rows_of(conversations=[{"from": "hummany", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]),
    ),
    "roles and contents under other names": Case(
        BAD, ("bad.jsonl:1", "without role and content"), chat_of({"speaker": "user", "says": "Hi"})
    ),
    "empty answers": Case(BAD, ("bad.jsonl:1", "empty answer"), rows_of(instruction="a", input="", output="")),
    "an image": Case(
        BAD,
        ("bad.jsonl:1", "more than text", "image"),
        chat_of(
            {"role": "user", "content": [{"type": "image", "image": "a.png"}]}, {"role": "assistant", "content": "x"}
        ),
    ),
    "messages in a list in a list": Case(BAD, ("bad.jsonl:1", "messages, message 1"), chat_of([USER])),
    "one message for a list": Case(BAD, ("bad.jsonl:1", "no list"), rows_of(messages=USER)),
    "messages as prose": Case(BAD, ("bad.jsonl:1", "no list"), rows_of(messages="user: Hi assistant: Hello")),
    "a history of one": Case(
        BAD, ("bad.jsonl:1", "[question, answer]"), rows_of(query="a", response="b", history=["Hi"])
    ),
    "tool calls as prose": Case(
        BAD,
        ("bad.jsonl:1", "tool call"),
        chat_of(USER, {"role": "assistant", "content": "", "tool_calls": "weather(Ulm)"}),
    ),
    "a tool result first": Case(
        BAD,
        ("bad.jsonl:1", "tool result"),
        chat_of({"role": "tool", "content": "22"}, {"role": "assistant", "content": "x"}),
    ),
    "tokens of a template": Case(
        BAD, ("bad.jsonl:1", "special token", "<|im_end|>"), rows_of(query="Hi<|im_end|>", response="Hello")
    ),
    "answers all marked as not to be learned": Case(
        BAD, ("bad.jsonl:1", "nothing to learn"), chat_of(USER, {"role": "assistant", "content": "x", "loss": False})
    ),
    "half a surrogate pair": Case(BAD, ("bad.jsonl:1", "Unicode"), file_is("bad.jsonl", '{"text": "\\ud83d"}\n' * 2)),
    "NaN for text": Case(BAD, ("bad.jsonl:1", "number"), file_is("bad.jsonl", '{"query": "a", "response": NaN}\n')),
    "numbers for rows": Case(BAD, ("bad.jsonl:1", "not an object"), file_is("bad.jsonl", '1\n2\n{"a": 1}\n')),
    "nested without end": Case(
        sft("--dataset bad.json"), ("bad.json:1", "nested too deeply"), file_is("bad.json", "[" * 200_000)
    ),
    "more bad rows than allowed": Case(
        BAD, ("12 of 100 rows", "5%", "bad.jsonl:10", "and 2 more", "--max_bad_rows 12"), some_bad(12, 100)
    ),
    "one bad row of three": Case(BAD, ("1 of 3 rows", "bad.jsonl:1", "response is null", "Mend"), some_bad(1, 3)),
    "one bad row where none may be": Case(
        f"{BAD} --strict true", ("bad.jsonl:1", "response is null", "--strict", "Mend"), some_bad(1, 100)
    ),
    "one bad row of a stream where none may be": Case(
        f"{BAD} --strict true --streaming true --max_steps 2", ("bad.jsonl:1", "--strict"), some_bad(1, 100)
    ),
    "one bad row to be answered where none may be": Case(
        "infer --model Qwen2.5-7B-Instruct --val_dataset bad.jsonl --strict true --result_path output/a.jsonl",
        ("bad.jsonl:1", "--strict"),
        lambda shop: write_jsonl(shop.world.here / "bad.jsonl", [{"query": 7}, GOOD_ROW]),
    ),
    "some bad rows to evaluate on": Case(
        sft("--dataset good.json --val_dataset bad.jsonl"), ("9 of 18 rows", "bad.jsonl:1"), some_bad(9, 10)
    ),
    "long rows beside short ones": Case(
        f"{BAD} --max_length 60",
        ("2 of 4 rows", "bad.jsonl:1", "longer than max_length", "--truncation_strategy"),
        lambda s: write_jsonl(s.world.here / "bad.jsonl", [GOOD_ROW | {"query": "long " * 99}] * 2 + [GOOD_ROW] * 2),
    ),
}

FILES = {
    "UTF-16": Case(
        BAD, ("bad.jsonl:1", "UTF-16", "iconv"), file_is("bad.jsonl", json.dumps(GOOD_ROW).encode("utf-16"))
    ),
    "a comma before the closing bracket": Case(
        sft("--dataset bad.json"), ("bad.json:3", "Mend"), file_is("bad.json", f"[\n{json.dumps(GOOD_ROW)},\n]\n")
    ),
    "no comma between rows": Case(
        sft("--dataset bad.json"),
        ("bad.json:2", ", or ] expected"),
        file_is("bad.json", f"[{json.dumps(GOOD_ROW)}\n{json.dumps(GOOD_ROW)}]"),
    ),
    "no closing bracket": Case(
        sft("--dataset bad.json"),
        ("bad.json:1", "the end of the file"),
        file_is("bad.json", f"[{json.dumps(GOOD_ROW)}"),
    ),
    "a comment": Case(
        sft("--dataset bad.json"), ("bad.json:2",), file_is("bad.json", f"[\n// rows\n{json.dumps(GOOD_ROW)}]")
    ),
    "Python's quotes": Case(BAD, ("bad.jsonl:1", "property name"), file_is("bad.jsonl", f"{GOOD_ROW}\n{GOOD_ROW}\n")),
    "a row over many lines": Case(
        BAD, ("bad.jsonl", "one line"), file_is("bad.jsonl", f"{json.dumps(GOOD_ROW, indent=1)}\n" * 2)
    ),
    "a page of a hub": Case(
        BAD, ("bad.jsonl:1", "<!DOCTYPE"), file_is("bad.jsonl", "<!DOCTYPE html>\n<html>Log in</html>")
    ),
    "text for rows": Case(
        sft("--dataset bad.txt"), ("bad.txt", "Endings read"), file_is("bad.txt", "Once upon a time")
    ),
    "a spreadsheet": Case(sft("--dataset bad.xlsx"), ("bad.xlsx", "Endings read"), file_is("bad.xlsx", b"PK\x03\x04")),
    "semicolons": Case(
        sft("--dataset bad.csv"), ("bad.csv:1", "';'", "commas"), file_is("bad.csv", "query;response\na;b\nc;d\n")
    ),
    "tabs": Case(
        sft("--dataset bad.csv"), ("bad.csv:1", "tab", "commas"), file_is("bad.csv", "query\tresponse\na\tb\n")
    ),
    "quotes that do not close": Case(
        sft("--dataset bad.csv"), ("bad.csv", "line 2", "quotes"), file_is("bad.csv", 'query,response\n"a,b\nc,d\n')
    ),
    "a field too many": Case(
        sft("--dataset bad.csv"), ("bad.csv:2", "3 fields"), file_is("bad.csv", "query,response\na,b,c\n")
    ),
    "a header alone": Case(sft("--dataset bad.csv"), ("bad.csv", "no rows"), file_is("bad.csv", "query,response\n")),
    "a column twice": Case(sft("--dataset bad.csv"), ("bad.csv:1", "twice"), file_is("bad.csv", "query,query\na,b\n")),
    "gzip cut short": Case(
        sft("--dataset bad.jsonl.gz"), ("bad.jsonl.gz", "gzip"), file_is("bad.jsonl.gz", gzip.compress(b"{}" * 99)[:-9])
    ),
    "no gzip at all": Case(
        sft("--dataset bad.jsonl.gz"), ("bad.jsonl.gz", "gzip"), file_is("bad.jsonl.gz", json.dumps(GOOD_ROW))
    ),
    "zstd cut short": Case(
        sft("--dataset bad.jsonl.zst"),
        ("bad.jsonl.zst", "zstd"),
        file_is("bad.jsonl.zst", zstandard.ZstdCompressor().compress(b"{}\n" * 999)[:-9]),
    ),
    "no parquet": Case(
        sft("--dataset bad.parquet"), ("bad.parquet", "Fetch"), file_is("bad.parquet", "PAR1 and no more")
    ),
    "a pointer to a file": Case(
        sft("--dataset bad.parquet"), ("bad.parquet", "git lfs pull"), file_is("bad.parquet", lfs_pointer(12345))
    ),
    "an empty folder": Case(
        sft("--dataset folder"), ("folder", "nothing"), lambda shop: (shop.world.here / "folder").mkdir()
    ),
    "a pickle of datasets": Case(
        sft("--dataset folder"),
        ("folder", "data-00000-of-00001.arrow"),
        file_is("folder/data-00000-of-00001.arrow", b"x"),
    ),
    "no such subset": Case(
        sft("--dataset folder:fr"), ("folder", "'fr'", "en.jsonl"), file_is("folder/en.jsonl", json.dumps(GOOD_ROW))
    ),
    "a subset of one file": Case(sft("--dataset good.json:en"), ("good.json", "'en'", "no subset")),
    "names with commas": Case(
        sft("--dataset good.json,self_cognition.json"), ("good.json,self_cognition.json", "blank")
    ),
    "a home of nobody": Case(sft("--dataset ~nobody-here/rows.json"), ("~nobody-here/rows.json", "not found")),
    "a name too long": Case(sft(f"--dataset {'a' * 300}.json"), ("aaa", "not found")),
    "no such rows to evaluate on": Case(
        sft("--dataset good.json --val_dataset goood.json"), ("goood.json", "not found", "Did you mean")
    ),
}

GOOD = "--dataset good.json"
VALUES = {
    "a number cut off": Case(sft(f"{GOOD} --learning_rate 1e-4e"), ("--learning_rate", "1e-4e")),
    "a negative rate": Case(sft(f"{GOOD} --learning_rate -1e-4"), ("--learning_rate", "0 or more", "-1e-4")),
    "rank 0": Case(sft(f"{GOOD} --lora_rank 0"), ("--lora_rank", "above 0", "'0'")),
    "a fraction of a step": Case(sft(f"{GOOD} --max_steps 1.5"), ("--max_steps", "whole number", "1.5")),
    "epochs that are no number": Case(sft(f"{GOOD} --num_train_epochs nan"), ("--num_train_epochs", "nan")),
    "every 0 steps": Case(sft(f"{GOOD} --save_steps 0"), ("--save_steps", "above 0")),
    "all rows to evaluate on": Case(sft(f"{GOOD} --split_dataset_ratio 1.0"), ("--split_dataset_ratio", "less than 1")),
    "an integer dtype": Case(sft(f"{GOOD} --torch_dtype int8"), ("--torch_dtype", "bfloat16", "int8")),
    "rows as 0.05": Case(sft(f"{GOOD} --max_bad_rows 0.05"), ("--max_bad_rows", "0.05", "5%")),
    "room for one token": Case(sft(f"{GOOD} --max_length 1"), ("--max_length 1", "the shortest")),
    "a seed beyond all numbers": Case(sft(f"{GOOD} --seed {10**25}"), ("--seed", "less than 4294967296")),
    "columns that are no JSON": Case(sft(f"{GOOD} --columns frage=query"), ("--columns", "JSON", "frage=query")),
    "columns in a list": Case(sft(f'{GOOD} --columns ["frage"]'), ("--columns", "JSON object")),
    "a broken pattern": Case(sft(f"{GOOD} --target_regex (q_proj"), ("--target_regex", "(q_proj")),
    "a pattern that fits nothing": Case(sft(f"{GOOD} --target_regex x.*"), ("--target_regex", "x.*")),
    "modules to save that are not there": Case(sft(f"{GOOD} --modules_to_save nope"), ("--modules_to_save", "nope")),
    "everything frozen": Case(
        sft(f"{GOOD} --train_type full --freeze_parameters_ratio 1"),
        ("frozen", "--trainable_parameters"),
    ),
    "a setting that the schedule does not have": Case(
        sft(f'{GOOD} --lr_scheduler_kwargs {{"min":1}}'), ("--lr_scheduler_kwargs", "min")
    ),
    "no such template": Case(sft(f"{GOOD} --template martian"), ("--template", "martian", "chatml")),
    "no such template file": Case(sft(f"{GOOD} --template none.jinja"), ("none.jinja",)),
    "a broken template file": Case(
        sft(f"{GOOD} --template bad.jinja"), ("bad.jinja", "template"), file_is("bad.jinja", "{% for m in messages %}")
    ),
    "no such system prompt": Case(sft(f"{GOOD} --system none.txt"), ("--system", "none.txt")),
    "flash attention without a GPU": Case(
        sft(f"{GOOD} --attn_impl flash_attn"), ("--attn_impl flash_attention_2", "Use --attn_impl sdpa")
    ),
    "a tracker that is not installed": Case(sft(f"{GOOD} --report_to swanlab"), ("--report_to swanlab", "pip"), code=1),
    "weights of no adapters": Case("infer --adapter_weights 0.7,0.3", ("--adapter_weights", "--adapters")),
    "a negative temperature": Case("infer --temperature -1", ("--temperature", "0 or more")),
    "a folder for a result": Case(
        "infer --model Qwen2.5-7B-Instruct --val_dataset good.json --max_new_tokens 1 --result_path .hf",
        ("--result_path", ".hf"),
        lambda shop: (shop.world.here / ".hf").mkdir(),
        code=1,
    ),
    "the wrong dash": Case("sft \u2013\u2013dataset good.json", ("\u2013\u2013dataset", "two dashes")),
    "one dash": Case("sft -dataset good.json", ("-dataset", "two dashes, --dataset")),
    "rows for a file of arguments": Case("sft good.jsonl", ("good.jsonl", "--dataset is missing")),
    "a command misspelt": Case("stf --dataset good.json", ("stf", "did you mean swift sft?")),
    "a command of another program": Case("train examples/lora.yaml", ("train", "commands are sft")),
    "a stream without an end": Case(sft(f"{GOOD} --streaming true"), ("--streaming", "--max_steps")),
    "an id with a blank name": Case(sft("--dataset :en"), ("':en'", "no name")),
}


def yaml_is(text: str | bytes) -> Callable[[Shop], Any]:
    return file_is("run.yaml", text)


RUN = "sft --config run.yaml"
SETTINGS = {
    "tabs in YAML": Case(RUN, ("run.yaml:2", "not YAML"), yaml_is("model: x\n\tdataset: good.json\n")),
    "a key twice in YAML": Case(
        RUN,
        ("run.yaml:1: lora_rank", "run.yaml:2", "different things"),
        yaml_is("lora_rank: 8\nlora_rank: 16\ndataset: good.json\n"),
    ),
    "nested YAML": Case(RUN, ("run.yaml:1: dataset", "path"), yaml_is("dataset:\n  path: good.json\n  type: alpaca\n")),
    "YAML of axolotl": Case(
        RUN,
        ("run.yaml:1: base_model", "run.yaml:2: datasets", "did you mean --dataset?"),
        yaml_is("base_model: Qwen/Qwen2-7B-Instruct\ndatasets: [good.json]\n"),
    ),
    "a list for YAML": Case(RUN, ("run.yaml", "learning_rate: 1e-4"), yaml_is("- dataset\n- good.json\n")),
    "two documents": Case(RUN, ("run.yaml:2", "another document"), yaml_is("dataset: good.json\n---\nlora_rank: 8\n")),
    "a Python object in YAML": Case(
        RUN, ("run.yaml:1", "not YAML"), yaml_is('dataset: !!python/object/apply:os.system ["true"]\n')
    ),
    "YAML in Latin-1": Case(RUN, ("run.yaml", "UTF-8"), yaml_is("system: Gr\u00fc\u00dfe\n".encode("latin-1"))),
    "a NUL in a name": Case(RUN, ("not found",), yaml_is('dataset: "a\\0b.json"\n')),
    "a list in a number": Case(RUN, ("run.yaml:2: lora_rank", "[8]"), yaml_is("dataset: good.json\nlora_rank: [8]\n")),
    "args.json of another command": Case(
        "sft --config args.json",
        ("args.json:1: result_path", "swift infer"),
        file_is("args.json", '{"dataset": ["good.json"], "result_path": "a.jsonl"}'),
    ),
    "args.json cut short": Case(
        "sft --config args.json", ("args.json:1", "not JSON"), file_is("args.json", '{"dataset": [')
    ),
}


def changed(name: str, **values: Any) -> Callable[[Shop], Any]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return damaged(change)


def written(name: str, content: str) -> Callable[[Shop], Any]:
    return damaged(lambda folder: (folder / name).write_text(content))


def _shard_lost(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def adapter_is(config: str) -> Callable[[Shop], Any]:
    """An adapter of this configuration, with a file of no tensors for its weights."""

    def make(shop: Shop) -> None:
        shop.write("adapter/adapter_config.json", config)
        shop.write("adapter/adapter_model.safetensors", (2).to_bytes(8, "little") + b"{}")

    return make


ADAPTER = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
WITH_ADAPTER = "infer --model Qwen2.5-7B-Instruct --adapters adapter"
MODELS = {
    "an empty folder for a model": Case(OWN, ("model", "config.json"), lambda s: (s.world.here / "model").mkdir()),
    "weights of no bytes": Case(OWN, ("model.safetensors", "Fetch"), written("model.safetensors", "")),
    "a pointer to weights": Case(OWN, ("model.safetensors",), written("model.safetensors", lfs_pointer(999))),
    "a part of the weights lost": Case(OWN, ("model-00002-of-00002.safetensors",), damaged(_shard_lost)),
    "tokenizer.json cut short": Case(OWN, ("tokenizer",), written("tokenizer.json", '{"version": "1.0", "model": {')),
    "tokenizer_config.json cut short": Case(OWN, ("tokenizer",), written("tokenizer_config.json", '{"eos_token": ')),
    "generation_config.json cut short": Case(
        "infer --model model --val_dataset good.json --max_new_tokens 1 --result_path output/a.jsonl",
        ("generation_config.json",),
        written("generation_config.json", '{"eos_token_id": '),
    ),
    "config.json is a list": Case(OWN, ("config.json",), written("config.json", "[]")),
    "heads that do not divide": Case(OWN, ("model",), changed("config.json", num_attention_heads=5)),
    "no layers": Case(OWN, ("model", "num_hidden_layers"), changed("config.json", num_hidden_layers="many")),
    "a quantized model": Case(
        OWN, ("model", "GPTQ"), changed("config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    ),
    "an adapter without weights": Case(
        WITH_ADAPTER,
        ("adapter", "adapter_model.safetensors"),
        file_is("adapter/adapter_config.json", json.dumps(ADAPTER)),
    ),
    "an adapter of no weights": Case(WITH_ADAPTER, ("adapter",), adapter_is(json.dumps(ADAPTER))),
    "a word for an adapter's rank": Case(WITH_ADAPTER, ("adapter",), adapter_is(json.dumps(ADAPTER | {"r": "eight"}))),
    "an adapter of a method unknown": Case(WITH_ADAPTER, ("adapter", "MAGIC"), adapter_is('{"peft_type": "MAGIC"}')),
    "an adapter_config.json cut short": Case(WITH_ADAPTER, ("adapter_config.json",), adapter_is('{"peft_type": ')),
    "a home of nobody's model": Case("sft --model ~nobody-here/m --dataset good.json", ("~nobody-here/m", "not found")),
    "an id that no hub gives": Case("sft --model org/name. --dataset good.json", ("org/name.", "not found")),
    "a model with a name too long": Case(f"sft --model {'a' * 300} --dataset good.json", ("aaa", "not found")),
}

CASES = {**ROWS, **FILES, **VALUES, **SETTINGS, **MODELS}


@pytest.mark.parametrize("name", CASES)
def test_collected_mistakes_are_answered(shop: Shop, name: str) -> None:
    case = CASES[name]
    case.make(shop)
    code, said = shop.swift(case.line)
    assert_answered(code, said, case)
    assert not list(shop.world.here.glob("output/*")), "half a run was left"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SWIFTUNE_CACHE", "good.json/cache", ("good.json/cache", "SWIFTUNE_CACHE")),
        ("NPROC_PER_NODE", "two", ("NPROC_PER_NODE", "two")),
        ("NPROC_PER_NODE", "0", ("NPROC_PER_NODE", "0")),
    ],
)
def test_the_environment_is_checked_too(shop: Shop, monkeypatch, name: str, value: str, says) -> None:
    monkeypatch.setenv(name, value)
    code, said = shop.swift(sft(GOOD))
    assert_answered(code, said, Case("", says, code=code))
    assert code in (1, 2)
    assert not list(shop.world.here.glob("output/*"))


def test_a_stream_stops_where_too_many_rows_were_bad_and_lists_them(shop: Shop) -> None:
    write_jsonl(shop.world.here / "rows.jsonl", [GOOD_ROW] * 200 + [GOOD_ROW | {"response": ""}] * 9)
    flags = "--streaming true --shuffle_buffer_size 1 --max_bad_rows 5 --per_device_train_batch_size 8"
    code, said = shop.swift(sft(f"--dataset rows.jsonl {flags} --gradient_accumulation_steps 1 --max_steps 900"))
    assert_answered(code, said, Case("", ("6 of up to", "--max_bad_rows is 5", "rows.jsonl:201: empty answer")))
    run = run_of(shop.world.here / "output")
    aside = [json.loads(line) for line in (run / "set_aside.jsonl").read_text().splitlines()]
    assert [row["line"] for row in aside] == list(range(201, 207))
    assert log_of(run), "the rows before were trained on"


LINES = f"{json.dumps(GOOD_ROW)}\n{json.dumps(ALPACA)}\n"


@pytest.mark.parametrize(
    "content", [LINES.replace("\n", "\r\n").encode(), LINES.encode("utf-8-sig"), LINES[:-1].encode()]
)
def test_what_windows_writes_is_no_mistake(shop: Shop, content: bytes) -> None:
    shop.write("rows.jsonl", content)
    code, said = shop.swift(sft("--dataset rows.jsonl --max_steps 1"))
    assert (code, "2 rows read = 2 used + 0 set aside" in said) == (0, True), said


def test_there_are_more_than_a_hundred_cases() -> None:
    assert not set(CASES) & set(test_bad_input.CASES)
    assert len({case.line + repr(case.says) for case in [*CASES.values(), *test_bad_input.CASES.values()]}) >= 110
