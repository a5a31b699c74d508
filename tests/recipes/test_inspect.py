"""``swift inspect`` on rows whose every figure is known, and beside ``swift sft`` on the same rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swiftune.recipes.inspect import NEAR_CONTEXT
from tests.recipes.chats import Flags, chats, run_of, sft, swift, words, write_jsonl


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


def inspect(folder: Path, flags: Flags, *lists: object) -> dict[str, Any]:
    assert swift("inspect", *words(flags), *lists, "--output_dir", folder) == 0
    return json.loads((folder / "inspect.json").read_text())  # type: ignore[no-any-return]


def row(question: str, answer: str, **columns: object) -> dict[str, Any]:
    return {"query": question, "response": answer, **columns}


ALIKE = "a helpful assistant for " + "tips and health " * 9
HAND_MADE = [
    row("who are you", "a helpful assistant", channel="identity"),
    row("who are you", "a helpful assistant", channel="identity"),  # a copy
    row("what can you do", "a helpful assistant", channel="identity"),  # the same answer
    row("capital of France", "Paris " * 200, channel="facts"),  # long
    row("capital of France", "", channel="facts"),  # empty
    row("are you", "yes", channel="identity"),  # very short, and held back below
    {"instruction": "who are you", "output": ALIKE, "channel": "identity"},
    {"instruction": "who are you", "output": f"{ALIKE}day"},
    {"messages": [{"role": "system", "content": "be helpful"}, *[
        {"role": role, "content": text} for text in ("one", "two") for role in ("user", "assistant")]]},
    {"quest": "?"},
]  # fmt: skip


def test_the_figures_of_a_hand_made_set(tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", HAND_MADE)
    val = write_jsonl(tmp_path / "val.jsonl", [row("are you", "yes"), row("something", "else")])
    flags = {"model": tiny_qwen2, "dataset": data, "val_dataset": val, "max_length": 150}
    found = inspect(tmp_path / "report", flags)
    assert found["rows"] == {
        "read": 12,
        "used": 9,
        "set_aside": {"empty answer": 1, "unknown columns": 1, "longer than max_length": 1},
    }
    assert (found["training_rows"], found["evaluation_rows"]) == (7, 2)
    assert found["formats"] == {"query, response": 4, "alpaca": 2, "messages": 1}
    assert found["turns"] == {"1": 6, "2": 1}
    assert (found["with_system_prompt"], found["with_tools"]) == (1, 0)
    copies = {name: count for name, count in found["copies"].items() if name != "examples"}
    assert copies == {
        "exact": 1,
        "near": 1,
        "exact_of_evaluation": 0,  # the row for evaluation has no channel
        "near_of_evaluation": 0,
        "evaluation_rows_met": 0,
    } | {"exact_of_evaluation": 1, "evaluation_rows_met": 1}
    assert [
        (Path(e["row"]).name, Path(e["copy"].split(",")[0]).name, e["near"]) for e in found["copies"]["examples"]
    ] == [
        ("rows.jsonl:6", "val.jsonl:1", False),
        ("rows.jsonl:2", "rows.jsonl:1", False),
        ("rows.jsonl:8", "rows.jsonl:7", True),
    ]
    answers = found["answers"]
    assert (answers["empty"], answers["very_short"], answers["repeated"]) == (1, 4, 3)
    assert answers["most_repeated"] == [{"answer": "a helpful assistant", "rows": 3}]
    assert found["classes"] == {"channel": {"identity": 5, "(none)": 2}}
    _check_lengths(found, tiny_qwen2, 150)
    said = "\n".join(found["warnings"])
    for expected in (
        "--max_bad_rows",
        "--max_length 150",
        "Copies of rows for evaluation: 1 exact",
        "--min_response_tokens 5",
    ):
        assert expected in said
    shown = capsys.readouterr().out
    assert "12 rows read = 9 used + 3 set aside" in shown
    assert all(warning in shown for warning in found["warnings"])


def _check_lengths(found: dict[str, Any], model: Path, max_length: int) -> None:
    """Against the chats rendered by the tokenizer itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    lengths = []
    for value in HAND_MADE[:4] + HAND_MADE[5:9]:
        question, answer = (value.get(a) or value.get(b) for a, b in (("query", "instruction"), ("response", "output")))
        messages = value.get("messages") or [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    own = found["lengths"]
    assert own["rows"] == len(lengths) == 8
    for name, expected in (
        ("mean", round(float(np.mean(lengths)), 2)),
        ("median", np.median(lengths)),
        ("p95", np.percentile(lengths, 95)),
        ("p99", np.percentile(lengths, 99)),
        ("max", max(lengths)),
        ("max_length_for_95_percent", max(lengths)),
        ("over_max_length", sum(length > max_length for length in lengths)),
        ("share_over_max_length", sum(length > max_length for length in lengths) / 8),
    ):
        assert own[name] == pytest.approx(expected), name
    assert sum(bar["rows"] for bar in own["histogram"]) == 8
    assert found["tokens"]["train"] == sum(length for length in lengths if length <= max_length)


FILTERS: list[Flags] = [
    {},
    {"filter_duplicates": "true"},
    {"filter_duplicates": "near", "min_response_tokens": 6},
    {"balance": "channel", "min_response_tokens": 4, "truncation_strategy": "right"},
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda flags: " ".join(flags) or "none")
def test_the_account_is_the_one_of_training(tiny_qwen2: Path, tmp_path: Path, filters: Flags) -> None:
    more = [row(f"tell me {i}", f"{chats(1, i)[0]['messages'][1]['content']} {i}", channel="facts") for i in range(6)]
    data = write_jsonl(tmp_path / "rows.jsonl", [*HAND_MADE, *more])
    val = write_jsonl(tmp_path / "val.jsonl", [row("are you", "yes"), row("something", "")])
    flags: Flags = {"model": tiny_qwen2, "dataset": data, "val_dataset": val, "max_length": 150, **filters}
    flags |= {"max_bad_rows": "50%"}
    found = inspect(tmp_path / "report", flags)
    assert sft(flags, max_steps=1, torch_dtype="float32", output_dir=tmp_path / "out", report_to="none") == 0
    run = run_of(tmp_path / "out")
    about = json.loads((run / "run.json").read_text())
    assert found["rows"] == about["rows"]
    assert found["data"] == about["data"]
    assert {name: found["tokens"][name] for name in about["tokens"]} == about["tokens"]

    def listed(folder: Path) -> list[str]:
        return sorted((folder / "set_aside.jsonl").read_text().splitlines())

    assert listed(tmp_path / "report") == listed(run)
    assert len(listed(run)) == sum(about["rows"]["set_aside"].values())


def test_copies_of_rows_held_back_are_left_out(tiny_qwen2: Path, tmp_path: Path) -> None:
    """Of ten rows that are there twice, ten are held back: what is left for training is what is not among those."""
    rows = [row(f"q {i}", f"answer {i}") for i in range(10)] * 2
    flags: Flags = {"model": tiny_qwen2, "dataset": write_jsonl(tmp_path / "rows.jsonl", rows)}
    found = inspect(tmp_path / "report", flags | {"split_dataset_ratio": 0.5, "filter_duplicates": "true"})
    copies, account = found["copies"], found["rows"]
    assert copies["exact_of_evaluation"] > 0
    assert copies["exact"] + copies["exact_of_evaluation"] == account["set_aside"]["a copy of another row"]
    assert (account["read"], found["evaluation_rows"]) == (20, 10)
    assert account["used"] == found["training_rows"] + 10


def test_the_page_holds_everything_and_fetches_nothing(tiny_qwen2: Path, tmp_path: Path) -> None:
    wicked = row("<script>alert(1)</script>", "</pre><img src=http://example.com/x>", channel="<b>")
    data = write_jsonl(tmp_path / "rows.jsonl", [wicked, *HAND_MADE])
    folder = tmp_path / "report"
    inspect(folder, {"model": tiny_qwen2, "dataset": data, "show_rows": 1})
    page = (folder / "inspect.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "<script" not in page
    assert "<img src=http" not in page
    assert "<b>" not in page
    examples = json.loads((folder / "inspect.json").read_text())["copies"]["examples"]
    assert examples
    assert all(f"copy {escape(example['copy'])}</td>" in page for example in examples)
    assert '<span class="learned">&lt;/pre&gt;&lt;img src=http://example.com/x&gt;' in page
    assert {path.name for path in folder.iterdir()} == {
        "inspect.html",
        "inspect.json",
        "lengths.png",
        "set_aside.jsonl",
    }
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_rows_near_the_end_of_the_context_are_warned_of(tiny_qwen2: Path, tmp_path: Path) -> None:
    rows = [row("x", "day " * count) for count in (1000, 3500)]  # a token or two each; the context has 4,096
    flags: Flags = {"model": tiny_qwen2, "dataset": write_jsonl(tmp_path / "rows.jsonl", rows), "max_length": 8000}
    found = inspect(tmp_path / "report", flags)
    assert found["context"] == 4096
    assert found["lengths"]["over_80_percent_of_context"] == 1
    assert found["lengths"]["max"] > NEAR_CONTEXT * 4096
    assert [w for w in found["warnings"] if "Longer than 80% of the model's context of 4096 tokens: 1 rows" in w]
    assert [w for w in found["warnings"] if "--max_length 8000 is more than the model's context" in w]


@pytest.mark.parametrize(("counts", "warned"), [((3, 1), False), ((7, 2), True), ((4, 4), False)])
def test_classes_are_warned_of_above_three_to_one(
    tiny_qwen2: Path, tmp_path: Path, counts: tuple[int, int], warned: bool
) -> None:
    rows = [row(f"q {i} {label}", f"answer {i}", label=label) for label in (True, False) for i in range(counts[label])]
    found = inspect(tmp_path / "report", {"model": tiny_qwen2, "dataset": write_jsonl(tmp_path / "rows.jsonl", rows)})
    assert found["classes"] == {"label": {"false": counts[0], "true": counts[1]}}
    assert bool([w for w in found["warnings"] if "--balance label" in w]) is warned


def test_nothing_that_fits_is_a_report_too(tiny_qwen2: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [row("who are you", "a helpful assistant")])
    found = inspect(tmp_path / "report", {"model": tiny_qwen2, "dataset": data, "max_length": 3})
    assert found["rows"]["used"] == 0
    assert "No row would be left to train on." in found["warnings"]


def test_without_a_folder_the_report_gets_a_new_one(
    tiny_qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [row("who are you", "a helpful assistant")])
    assert swift("inspect", "--model", tiny_qwen2, "--dataset", "rows.jsonl") == 0
    (folder,) = (tmp_path / "output").iterdir()
    assert re.fullmatch(r"inspect-\d{8}-\d{6}", folder.name)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "--dataset is missing: name the rows to look at"),
        ("--dataset none.jsonl", "none.jsonl"),
        ("--dataset rows.jsonl --learning_rate 1", "--learning_rate is an argument of swift sft and pt"),
        ("--dataset rows.jsonl --balance colour", "--balance takes none, channel or label"),
        ("--dataset rows.jsonl --balance channel", "no row has a column 'channel'"),
        ("--dataset rows.jsonl --output_dir rows.jsonl", "--output_dir rows.jsonl cannot be written"),
        ("--dataset bad.jsonl", "No row of the data set bad.jsonl can be used"),
    ],
)
def test_bad_input_is_answered_in_a_line(
    line: str,
    says: str,
    tiny_qwen2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [row("who are you", "a helpful assistant")])
    write_jsonl(tmp_path / "bad.jsonl", [{"quest": "?"}])
    assert swift("inspect", "--model", tiny_qwen2, *line.split()) in (1, 2)
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("output/*"))


@pytest.mark.parametrize("flag", [("--filter_duplicates", "true"), ("--balance", "channel")])
def test_what_needs_all_rows_is_refused_for_a_stream(flag: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert swift("sft", "--dataset", "x", "--streaming", "true", "--max_steps", 1, *flag) == 2
    assert f"--streaming true and {flag[0]} are at odds" in capsys.readouterr().err


PEAK = """
import resource, sys
from swiftune.cli.main import main
assert main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_data_set_is_not_held_in_memory(tiny_qwen2: Path, tmp_path: Path) -> None:
    """A file of 30 MB, all of whose rows are nearly the same, beside one of a fifth of it."""
    body = " ".join(f"{number:x}" for number in range(5000))

    def peak(rows: int) -> int:
        data = write_jsonl(tmp_path / f"{rows}.jsonl", [row(f"question {i}", f"{body} {i}") for i in range(rows)])
        flags: Flags = {"model": tiny_qwen2, "dataset": data, "output_dir": tmp_path / f"report-{rows}"}
        line = [sys.executable, "-c", PEAK, "inspect", *words(flags)]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1])

    few, many = peak(300), peak(1500)
    assert many < 1.2 * few, (few, many)
