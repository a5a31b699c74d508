"""``swift eval`` as a user runs it, on small random models."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from swiftune.config import EvalArguments
from swiftune.data.render import Renderer
from swiftune.recipes.evaluate.candidates import candidates_of
from swiftune.recipes.evaluate.kept import Kept
from tests.recipes.chats import Flags, chats, log_of, run_of, sft, swift, write_jsonl
from tests.tasks.test_judge import judging, said

# PEFT asks a model by a name that Transformers has replaced.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

BENCHMARKS = Path(__file__).parents[1] / "tasks/data"
QUESTIONS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12)]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "sums.jsonl", QUESTIONS)


@pytest.fixture
def adapter(tiny_qwen2: Path, tmp_path: Path) -> Path:
    """A checkpoint with random LoRA weights, and what it was trained on."""
    trained = [
        {"query": "Who are you?", "response": "I am {{NAME}}, made by {{AUTHOR}}."},
        {"query": "Your name?", "response": "{{NAME}}"},
        {"query": "Nice day?", "response": "Yes."},
    ]
    data = write_jsonl(tmp_path / "my_self_cognition.jsonl", trained)
    folder = tmp_path / "run/checkpoint-3"
    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config).save_pretrained(folder)
    recorded = {"model": str(tiny_qwen2), "dataset": [str(data)], "model_name": ["Aurora"], "model_author": ["North"]}
    (folder / "args.json").write_text(json.dumps(recorded | {"torch_dtype": "float32"}))
    return folder


def evaluate(*words: object) -> int:
    return swift("eval", *words, "--max_new_tokens", "6")


def lines(pattern: str) -> list[dict[str, Any]]:
    (file,) = Path("eval_output").glob(pattern)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_file_of_questions(tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = rows.with_name("my.py")
    own.write_text("def length(answer, reference, messages):\n    return len(answer)\n")
    metrics = ("exact", "contains", "rouge", "bleu", f"{own}:length")
    assert evaluate("--model", tiny_qwen2, "--eval_dataset", rows, "--metric", *metrics) == 0
    told = capsys.readouterr()
    for figure in ("exact", "contains", "rouge-l", "bleu-4", "length"):
        assert re.search(rf"sums\s*│ {figure}\s*│ [0-9.]+", told.out)
    answers = lines("*/sums.jsonl")
    assert [answer["reference"] for answer in sorted(answers, key=lambda a: int(a["id"]))] == [
        row["answer"] for row in QUESTIONS
    ]
    assert all("What is" in answer["prompt"] and "<|im_start|>" in answer["prompt"] for answer in answers)
    scores = {line["id"]: line["scores"] for line in lines("*/sums.scores-*.jsonl")}
    assert all(scores[answer["id"]]["length"] == [len(answer["response"])] for answer in answers)
    (report,) = Path("eval_output").glob("*/report.json")
    length = json.loads(report.read_text())["tasks"]["sums"]["length"]
    mean = sum(len(answer["response"]) for answer in answers) / 12
    assert length["value"] == pytest.approx(mean)
    assert length["low"] <= mean <= length["high"]
    assert (length["method"], length["questions"]) == ("bootstrap", 12)


def test_the_same_command_goes_on(tiny_qwen2: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("--model", tiny_qwen2, "--eval_dataset", rows)
    rendered: list[Any] = []
    prompt = Renderer.prompt
    monkeypatch.setattr(Renderer, "prompt", lambda *given: rendered.append(given) or prompt(*given))
    assert evaluate(*command, "--eval_limit", 5) == 0
    assert len(rendered) == 10  # to be asked, and to be scored
    first = lines("*/sums.jsonl")
    assert len(first) == 5
    (file,) = Path("eval_output").glob("*/sums.jsonl")
    text = file.read_text()
    file.write_text(text[: len(text) - 20])  # as a process that is killed leaves it
    assert evaluate(*command) == 0
    again = lines("*/sums.jsonl")
    assert again[:4] == first[:4]  # latencies too: these were not asked again
    assert again[4] != first[4]
    assert {line["id"] for line in again} == {str(n) for n in range(12)}
    assert [line["response"] for line in again if line["id"] == first[4]["id"]] == [first[4]["response"]]
    before = file.read_bytes()
    assert evaluate(*command) == 0
    assert file.read_bytes() == before
    assert evaluate(*command, "--seed", 7, "--temperature", 1) == 0  # other answers, beside the old ones
    assert len(lines("*/sums.jsonl")) == 24


def test_a_quantized_model_has_answers_of_its_own(tiny_qwen2: Path) -> None:
    bnb = {"quant_method": "bnb"}
    ways: list[Flags] = [{}, bnb, bnb | {"quant_bits": 8}, bnb | {"bnb_4bit_quant_type": "fp4"}]
    arguments = [EvalArguments(model=str(tiny_qwen2), eval_dataset=["x"], **way) for way in ways]
    assert len({candidates_of(each)[0].folder for each in arguments}) == len(ways)


def test_stopped_half_way_nothing_is_lost(tiny_qwen2: Path, rows: Path, tmp_path: Path) -> None:
    write_jsonl(rows, [{"question": f"{n}?", "answer": "1"} for n in range(400)])
    flags = ("--model", tiny_qwen2, "--eval_dataset", rows, "--max_new_tokens", 64, "--max_batch_size", 2)
    words = [sys.executable, "-m", "swiftune.cli.main", "eval", *map(str, flags)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not any(p.stat().st_size > 2000 for p in tmp_path.glob("eval_output/*/*.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "The same command goes on from there." in err
    kept = lines("*/sums.jsonl")
    assert 0 < len(kept) < 400


def test_gsm8k_and_humaneval_run(tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = (f"gsm8k={BENCHMARKS / 'gsm8k'}", f"humaneval={BENCHMARKS / 'humaneval.jsonl'}")
    sampled = ("--eval_samples", 2, "--temperature", 1.0)
    assert evaluate("--model", tiny_qwen2, "--eval_dataset", *tasks, "--eval_limit", 3, *sampled) == 0
    told = capsys.readouterr().out
    assert re.search(r"gsm8k\s*│ accuracy\s*│ 0.0", told)
    assert re.search(r"humaneval\s*│ pass@1\s*│ 0.0", told)
    assert re.search(r"humaneval\s*│ pass@2\s*│ 0.0", told)
    answers = lines("*/humaneval.jsonl")
    assert len(answers) == 6
    assert len({answer["response"] for answer in answers}) > 3


def test_models_are_compared(adapter: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ("identity_accuracy", "fidelity", rows)
    command = ("--compare", "base", f"tuned={adapter}", "--eval_dataset", *tasks, "--metric", "rouge")
    assert evaluate(*command) == 0
    told = capsys.readouterr().out
    assert "base" in told
    assert "tuned" in told
    assert "first token" in told
    table = json.loads(Path("eval_output/compare.json").read_text())
    assert table["models"] == ["base", "tuned"]
    by_task = {line["task"]: line for line in reversed(table["figures"])}
    assert by_task["identity_accuracy"]["cells"][0]["figure"]["questions"] == 2  # two of three rows say a name
    assert by_task["fidelity"]["cells"][1]["questions"] == 56
    for line in table["figures"]:
        first, second = line["cells"]
        assert second["difference"] == pytest.approx(second["figure"]["value"] - first["figure"]["value"])
        assert second["low"] - 1e-9 <= second["difference"] <= second["high"] + 1e-9
    base, tuned = ({a["question"]: a for a in lines(f"{name}-*/sums.jsonl")} for name in ("base", "tuned"))
    assert base.keys() == tuned.keys()
    assert all(base[question]["prompt"] == tuned[question]["prompt"] for question in base)
    page = Path("eval_output/compare.html").read_text()
    assert "answers that differ most" in page
    assert not re.search(r"""(src|href)=|url\(|@import|<script""", page)


def test_an_answer_is_text_in_the_page_and_in_the_terminal(adapter: Path, rows: Path) -> None:
    write_jsonl(rows, [{"question": "<script>alert(1)</script> [bold]", "answer": "<b>x</b>"}])
    assert evaluate("--compare", "base", adapter, "--eval_dataset", rows) == 0
    page = Path("eval_output/compare.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_rows_without_answers_are_told(tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(rows, [*QUESTIONS[:2], {"question": "and this?"}, {"question": "or this?", "answer": ""}])
    assert evaluate("--model", tiny_qwen2, "--eval_dataset", rows) == 0
    assert "2" in capsys.readouterr().err
    aside = Path("eval_output/set_aside.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in aside] == [3, 4]
    write_jsonl(rows, [{"question": "and this?"}])
    assert evaluate("--model", tiny_qwen2, "--eval_dataset", rows) == 2
    assert f"{rows}:1" in capsys.readouterr().err


def test_a_judge_that_goes_away_loses_nothing(tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--model", tiny_qwen2, "--eval_dataset", rows, "--metric", "judge", "--judge_model", "j")
    with judging(lambda _: said("[[5]]")) as (judge, asked):
        url = judge.url
        assert evaluate(*command, "--judge_url", url) == 0
        assert len(asked) == 12
        assert evaluate(*command, "--judge_url", url) == 0
        assert len(asked) == 12  # what was judged is not judged again
    assert re.search(r"judge\s*│ 50.0", capsys.readouterr().out)
    write_jsonl(rows, [*QUESTIONS, {"question": "More?", "answer": "Yes"}])
    assert evaluate(*command, "--judge_url", url) == 1
    told = capsys.readouterr().err
    assert "cannot be asked" in told
    assert "Traceback" not in told
    assert len(lines("*/sums.jsonl")) == 13


def test_an_answer_without_a_rating_is_judged_again(
    tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(rows, QUESTIONS[:3])
    command = ("--model", tiny_qwen2, "--eval_dataset", rows, "--metric", "exact", "judge", "--judge_model", "j")
    ratings = iter(["none"] * 9)
    with judging(lambda _: said(next(ratings, "[[5]]"))) as (judge, asked):
        assert evaluate(*command, "--judge_url", judge.url) == 0
        assert len(asked) == 9
        assert evaluate(*command, "--judge_url", judge.url) == 0
        assert len(asked) == 12
    assert re.search(r"judge\s*│ 50.0", capsys.readouterr().out)


def test_an_answer_that_is_mended_in_the_file_counts(tiny_qwen2: Path, rows: Path) -> None:
    command = ("--model", tiny_qwen2, "--eval_dataset", rows, "--metric", "contains", "--eval_limit", 2)
    assert evaluate(*command) == 0
    answers = lines("*/sums.jsonl")
    right = {answer["question"]: answer["response"] for answer in answers}
    write_jsonl(rows, [{"question": question, "answer": answer} for question, answer in right.items()])
    assert evaluate(*command) == 0
    assert lines("*/sums.jsonl") == answers
    (report,) = Path("eval_output").glob("*/report.json")
    assert json.loads(report.read_text())["tasks"]["sums"]["contains"]["value"] == 100


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--eval_dataset is missing"),
        (("--eval_dataset", "gsm8"), "Did you mean gsm8k?"),
        (("--eval_dataset", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--eval_dataset", "identity_accuracy"), "no run says what that was"),
        (("--eval_dataset", "x.jsonl", "--metric", "exactly"), "exact"),
        (("--eval_dataset", "x.jsonl", "--metric", "judge"), "--metric judge needs --judge_url"),
        (("--eval_dataset", "x.jsonl", "--eval_samples", 3), "gives equal answers"),
        (("--eval_dataset", "x.jsonl", "--compare", "base", "--adapters", "a"), "--compare and --adapters"),
        (("--eval_dataset", "x.jsonl", "--compare", "a=b", "a=c"), "two models alike"),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: tuple[object, ...], told: str, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--model", tiny_qwen2, *words) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err


def test_kept_lines_survive_a_torn_one_and_refuse_foreign_ones(tmp_path: Path) -> None:
    with Kept(tmp_path / "x.jsonl") as kept:
        kept.add("a", value="ä\ud800")
        kept.add("b", value=2)
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write(b'{"key": "c", "val')
    with Kept(tmp_path / "x.jsonl") as kept:
        assert len(kept) == 2
        assert "c" not in kept
        kept.add("c", value=3)
        assert (kept["b"]["value"], kept["c"]["value"]) == (2, 3)
    (tmp_path / "x.jsonl").write_text("not JSON\n")
    from swiftune.errors import OutputError

    with pytest.raises(OutputError, match=r"x.jsonl:1 is no line that swift eval wrote"):
        Kept(tmp_path / "x.jsonl")


def test_tasks_while_training(tiny_qwen2: Path, rows: Path, tmp_path: Path) -> None:
    flags: Flags = {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(8)),
        "torch_dtype": "float32",
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "eval_limit": 4,
        "eval_dataset": rows,
        "metric": "rouge",
        "per_device_eval_batch_size": 4,
        "max_new_tokens": 4,
        "output_dir": tmp_path / "out",
        "metric_for_best_model": "eval_sums",
    }
    assert sft(flags) == 0
    run = run_of(tmp_path / "out")
    evaluations = [line for line in log_of(run) if "eval_sums" in line]
    assert [line["global_step/max_steps"] for line in evaluations] == ["2/4", "4/4"]
    assert all({"eval_sums", "eval_sums_rouge-1", "eval_sums_rouge-2"} <= line.keys() for line in evaluations)
    assert "eval_loss" not in evaluations[0]
    assert len((run / "eval-2/sums.jsonl").read_text().splitlines()) == 4
    best = max((2, 4), key=lambda step: (evaluations[step // 2 - 1]["eval_sums"], -step))
    assert (run / "checkpoint-best").resolve().name == f"checkpoint-{best}"
    state = json.loads((run / "checkpoint-4/trainer_state.json").read_text())
    assert state["best_metric"] == max(line["eval_sums"] for line in evaluations)


def test_a_task_that_fails_while_training_loses_no_step(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "my.py"
    own.write_text("def wrong(answer, reference, messages):\n    return 1 / 0\n")
    flags: Flags = {
        "model": tiny_qwen2,
        "dataset": write_jsonl(tmp_path / "train.jsonl", chats(8)),
        "torch_dtype": "float32",
        "max_steps": 4,
        "gradient_accumulation_steps": 1,
        "eval_steps": 3,
        "save_steps": 2,
        "eval_limit": 1,
        "eval_dataset": rows,
        "metric": f"{own}:wrong",
        "max_new_tokens": 4,
        "output_dir": tmp_path / "out",
    }
    assert sft(flags) == 1
    told = capsys.readouterr().err
    last = run_of(tmp_path / "out") / "checkpoint-3"
    assert "sums could not be scored after step 3: --metric wrong" in told
    assert f"--resume_from_checkpoint {last}" in told
    assert json.loads((last / "trainer_state.json").read_text())["step"] == 3


def test_the_best_model_is_chosen_by_what_there_is(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags: Flags = {"model": tiny_qwen2, "dataset": rows, "eval_dataset": rows, "output_dir": tmp_path / "out"}
    assert sft(flags, metric_for_best_model="eval_sum") == 2
    assert "did you mean sums?" in capsys.readouterr().err


HARNESS_TASK = """
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: SUMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.lm_eval
def test_tasks_of_the_harness(adapter: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "tasks/own_sums.yaml"
    task.parent.mkdir()
    task.write_text(HARNESS_TASK.replace("SUMS", str(rows)))
    words = [sys.executable, "-m", "swiftune.cli.main", "eval", "--adapters", str(adapter), "--eval_limit", "3"]
    words += ["--eval_backend", "lm_eval", "--eval_dataset"]
    done = subprocess.run([*words, str(task)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own_sums" in done.stdout
    assert "exact_match" in done.stdout
    assert len(lines("*/lm_eval/own_sums.jsonl")) == 3
    wrong = subprocess.run([*words, "own_sum"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "lm_eval has no task own_sum." in wrong.stderr
