"""The published benchmarks: reference answers get 100%, wrong ones 0%, in each layout that hubs have."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from swiftune.data.ledger import Ledger
from swiftune.errors import DataError, NotFoundError
from swiftune.tasks.benchmark_files import rows_of
from swiftune.tasks.choice import CEval, Mmlu, letter_in
from swiftune.tasks.gsm8k import Gsm8k, equal, number_in
from swiftune.tasks.humaneval import HumanEval, program
from swiftune.tasks.named import Setting, Trained, make_task
from swiftune.tasks.sandbox import Limits
from swiftune.tasks.task import Question, Task

DATA = Path(__file__).with_name("data")


def share(task: Task, answer: Callable[[Question], str]) -> float:
    """The task's first figure for these answers, in percent."""
    figure = next(iter(task.figures))
    return sum(task.score(task[i], answer(task[i])).scores[figure][0] for i in range(len(task))) / len(task)


def one_more(question: Question) -> str:
    number = float(number_in(question.reference) or "nan")
    return f"{question.reference.rpartition('####')[0]}#### {number + 1:.10g}"


def test_gsm8k_gives_the_published_answers_all_and_wrong_ones_nothing() -> None:
    task = Gsm8k(DATA / "gsm8k")
    assert len(task) == 20
    assert share(task, lambda question: question.reference) == 100
    assert share(task, one_more) == 0
    assert share(task, lambda _: "I do not know.") == 0
    boxed = share(task, lambda q: f"So it is $\\boxed{{{number_in(q.reference)}}}$, in 2 steps.")
    assert boxed == 100


def test_gsm8k_is_shown_worked_examples_of_its_own_training_split() -> None:
    task = Gsm8k(DATA / "gsm8k")
    examples, question = task[3].messages[:-1], task[3].messages[-1]
    assert [message["role"] for message in examples] == ["user", "assistant"] * 8
    first = json.loads((DATA / "gsm8k/train.jsonl").read_text().splitlines()[0])
    assert first["question"] in examples[0]["content"]
    assert "<<" not in "".join(message["content"] for message in examples)
    assert question["role"] == "user"
    assert len(Gsm8k(DATA / "gsm8k", shots=0)[0].messages) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 2,125", "2125"),
        ("#### $18.50 a day", "18.50"),
        ("2 and 2 are 4. #### 4\nQuestion: what is 5+5? #### 10", "4"),
        ("First 3, then it is 7.", "7"),
        ("#### -10", "-10"),
        ("#### unknown", None),
        ("no idea", None),
    ],
)
def test_the_final_number_is_found(text: str, number: str | None) -> None:
    assert number_in(text) == number


def test_numbers_are_equal_by_their_value() -> None:
    assert equal("0.5", "1/2")
    assert equal("7", "7.0")
    assert not equal("7", "70")
    assert not equal("7", "-7")


def test_humaneval_gives_the_published_answers_all_and_wrong_ones_nothing() -> None:
    task = HumanEval(DATA / "humaneval.jsonl", limits=Limits(seconds=20))
    assert share(task, lambda question: question.reference) == 100
    assert share(task, lambda q: f"Here:\n```python\n{q.row['prompt']}{q.reference}\n```\nThat is all.") == 100
    assert share(task, lambda _: "    return None\n") == 0
    assert share(task, lambda _: "I cannot do that.") == 0


def test_a_completion_ends_where_the_function_does() -> None:
    prompt = "import math\n\ndef f(x):\n    '''Doc.'''\n"
    assert program(prompt, "    return x\n\nprint(f(1))", "f") == f"{prompt}    return x\n"
    whole = program(prompt, "```python\ndef f(x):\n    return math.pi\n```", "f")
    assert whole.startswith("import math")
    assert "Doc" not in whole


MMLU_ROW = {"question": "2 + 2?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 3}


def parquet(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_mmlu_reads_the_hub_layout(tmp_path: Path) -> None:
    for subject in ("algebra", "anatomy"):
        row = MMLU_ROW | {"subject": subject}
        parquet(tmp_path / subject / "test-00000-of-00001.parquet", [row, row | {"answer": 0}])
        parquet(tmp_path / subject / "dev-00000-of-00001.parquet", [row | {"question": f"{subject}?"}] * 7)
    task = Mmlu(tmp_path)
    assert len(task) == 4
    assert len(task[0].messages) == 11
    assert "algebra?" in task[0].messages[0]["content"]
    assert "anatomy?" in task[2].messages[0]["content"]
    assert share(task, lambda question: question.reference) == 100
    assert share(task, lambda question: "B") == 0
    assert len(Mmlu(tmp_path, subset="anatomy", shots=0)) == 2
    with pytest.raises(DataError, match="no file of the split test of 'astronomy'"):
        Mmlu(tmp_path, subset="astronomy")
    for split in ("test", "dev"):
        rows: list[dict[str, object]] = [MMLU_ROW | {"question": f"{n}?"} for n in range(3)]
        parquet(tmp_path / f"all/{split}-00000-of-00001.parquet", rows)
    assert [len(Mmlu(tmp_path, subset=subset)) for subset in (None, "all", "anatomy")] == [3, 3, 2]
    assert len(Mmlu(tmp_path)[0].messages) == 7


def test_ceval_reads_one_csv_a_subject(tmp_path: Path) -> None:
    for split, count in (("val", 3), ("dev", 5), ("test", 1)):
        (tmp_path / split).mkdir()
        with (tmp_path / split / f"physics_{split}.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["id", "question", "A", "B", "C", "D", *(["answer"] if split != "test" else [])])
            for number in range(count):
                out.writerow([number, "水的沸点是？", "0", "50", "100", "200", *(["C"] if split != "test" else [])])
    task = CEval(tmp_path)
    assert len(task) == 3
    assert len(task[0].messages) == 11
    assert share(task, lambda _: "答案是C。") == 100
    assert share(task, lambda _: "A") == 0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C) because A is wrong", "C"),
        ("The answer is D.", "D"),
        ("Answer: **A**", "A"),
        ("答案：B", "B"),
        ("A cat? The answer is C", "C"),
        ("The ANSWER Is B, not A", "B"),
        ("The answer is a bit tricky: C", "C"),
        ("I don't know", None),
        ("", None),
    ],
)
def test_the_letter_is_found(text: str, letter: str | None) -> None:
    assert letter_in(text) == letter


@pytest.mark.parametrize("benchmark", [Gsm8k, Mmlu])
def test_worked_examples_that_a_single_file_has_not_are_told(benchmark: type[Gsm8k | Mmlu], tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(MMLU_ROW | ({"answer": "#### 4"} if benchmark is Gsm8k else {})))
    with pytest.raises(DataError, match=r"--num_fewshot 3: .*test.jsonl is one file"):
        benchmark(file, shots=3)
    assert [len(benchmark(file, shots=shots)[0].messages) for shots in (None, 0)] == [1, 1]


def test_a_benchmark_is_found_in_the_mirror_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "hub/openai/gsm8k/main/test-00000-of-00001.parquet", [{"question": "1+1?", "answer": "#### 2"}])
    parquet(tmp_path / "hub/openai/gsm8k/main/train-00000-of-00001.parquet", [{"question": "1+2?", "answer": "#### 3"}])
    parquet(tmp_path / "hub/openai/gsm8k/socratic/test-00000-of-00001.parquet", [{"question": "?", "answer": "#### 0"}])
    monkeypatch.setenv("SWIFT_LOCAL_HUB", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    task, count = make_task("gsm8k", Setting(Ledger()))
    assert (len(task), count, task.name) == (1, 1, "gsm8k")
    assert len(task[0].messages) == 3
    task, count = make_task(f"gsm8k={DATA / 'gsm8k'}#5", Setting(Ledger()))
    assert (len(task), count) == (20, 5)


@pytest.mark.parametrize(("name", "count"), [("fidelity", 56), ("fidelity#7", 7), ("fidelity=MORE#2", 2)])
def test_fidelity_asks_as_many_as_are_wanted(name: str, count: int, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"question": "What is the capital of Peru?", "answer": "Lima"}\n' * 3)
    task, asked = make_task(name.replace("MORE", str(more)), Setting(Ledger()))
    assert asked == count
    assert task.name == "fidelity"
    assert next(iter(task.figures)) == ("rouge-l" if "MORE" in name else "contains")


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ASIDE = {
    "no question before the answer": [
        {"text": "Once upon a time."},
        {"messages": [{"role": "assistant", "content": "Hello!"}]},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hello!"}]},
    ],
    "an answer without words, which nothing can be compared with": [
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
            ]
        }
    ],
}


@pytest.mark.parametrize("why", ASIDE)
@pytest.mark.parametrize("task", ["", "fidelity=", "identity_accuracy"])
def test_rows_that_ask_nothing_or_answer_without_words_are_set_aside(
    why: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    trained = Trained([str(rows)], 1, False, 0.0, None)
    name = task if task == "identity_accuracy" else f"{task}{rows}"
    for mixed in (False, True):
        for aside in ASIDE[why]:
            good = {"query": "Who are you?", "response": "Hello!"}
            rows.write_text("".join(f"{json.dumps(row)}\n" for row in ([aside, good] if mixed else [aside])))
            setting = Setting(Ledger(), trained=trained if task == "identity_accuracy" else None, name=["Hello"])
            if mixed:
                made, count = make_task(name, setting)
                assert (len(made), count, made[0].reference) == (1, 1, "Hello!")
                assert setting.ledger.counts == {"read": 2, "used": 1, "set_aside": {why: 1}}
            else:
                with pytest.raises(DataError, match=f"{why}: {rows}:1"):
                    make_task(name, setting)


@pytest.mark.parametrize("pattern", ["(42", "a{99999999999999}"])
def test_an_answer_that_is_no_regular_expression_is_told(pattern: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in ("42", pattern)))
    with pytest.raises(DataError, match=f"{rows}:2: the answer is no regular expression"):
        make_task(str(rows), Setting(Ledger(), metrics=["regex"]))


def test_a_task_that_is_nowhere_is_told_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFT_LOCAL_HUB", str(tmp_path))
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path / "cache"))
    for variable in ("MODELSCOPE_CACHE", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    with pytest.raises(NotFoundError, match="no such task") as told:
        make_task("gsm8", Setting(Ledger()))
    assert "Did you mean gsm8k?" in str(told.value)
    with pytest.raises(NotFoundError, match="--eval_dataset humaneval=FOLDER"):
        make_task("humaneval", Setting(Ledger()))


def test_a_benchmark_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text('{"prompt": "1+1?", "solution": "2"}\n')
    with pytest.raises(DataError, match=r"test.jsonl:1 has no question; its columns are prompt, solution"):
        Gsm8k(tmp_path, shots=0)
    (tmp_path / "test.jsonl").write_text('{"question": "1+1?",\n')
    with pytest.raises(DataError, match="test.jsonl"):
        rows_of(tmp_path, ["test"])
