"""What a run leaves, and how it goes on: ``swift sft`` as a user runs it."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swiftune.runtime import hardware
from tests.recipes.chats import Flags, chats, log_of, run_of, sft, swift, words, write_jsonl

LOG_KEYS = {
    *("loss", "acc", "grad_norm", "learning_rate", "epoch", "global_step/max_steps", "percentage", "elapsed_time"),
    *("remaining_time", "memory(GiB)", "train_speed(iter/s)", "tokens/s"),
}
ANYWAY = ("--resume_anyway", "true")  # another --max_steps is another schedule
TOTALS = {
    *("train_runtime", "train_loss", "train_samples_per_second", "train_steps_per_second", "train_tokens_per_second"),
}


@pytest.fixture
def base(tiny_qwen2: Path, tmp_path: Path) -> Flags:
    """A run of 6 steps with dropout, an evaluation and a checkpoint every second step."""
    data = write_jsonl(tmp_path / "train.jsonl", chats(12))
    val = write_jsonl(tmp_path / "val.jsonl", chats(5, seed=9))
    return {
        "model": tiny_qwen2,
        "dataset": data,
        "val_dataset": val,
        "torch_dtype": "float32",
        "gradient_accumulation_steps": 4,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "eval_steps": 2,
        "save_steps": 2,
        "lora_dropout": 0.1,
        "output_dir": tmp_path / "out",
    }


def test_a_run_leaves_what_is_promised(base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("args.json", "run.json", "run.log", "logging.jsonl", "set_aside.jsonl", "images", "runs"),
        *("checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-best"),
    }
    assert {p.name for p in (run / "images").iterdir()} == {"loss.png", "acc.png", "learning_rate.png", "grad_norm.png"}
    assert all((p.read_bytes()[:4]) == b"\x89PNG" for p in (run / "images").iterdir())
    assert any(p.name.startswith("events.out.tfevents") for p in (run / "runs").rglob("*"))
    checkpoint = {path.name for path in (run / "checkpoint-6").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "args.json", "trainer_state.json"} <= checkpoint
    assert not any(name.endswith((".pt", ".pth", ".bin", ".pkl")) for name in checkpoint)

    log = log_of(run)
    steps = [record for record in log if "loss" in record]
    assert [record["global_step/max_steps"] for record in steps] == [f"{n}/6" for n in range(1, 7)]
    assert all(record.keys() == LOG_KEYS for record in steps)
    evaluations = [record for record in log if "eval_loss" in record]
    assert [record["global_step/max_steps"] for record in evaluations] == ["2/6", "4/6", "6/6"]
    assert all(0 <= record["eval_acc"] <= 1 for record in evaluations)
    assert log[-1].keys() >= TOTALS
    assert log[-1]["train_loss"] == pytest.approx(_token_mean(run, steps), rel=0.1)
    assert steps[-1]["percentage"] == "100.00%"
    best = min(evaluations, key=lambda record: record["eval_loss"])["global_step/max_steps"].split("/")[0]
    assert os.readlink(run / "checkpoint-best") == f"checkpoint-{best}"

    shown = capfd.readouterr().err
    assert "12 rows read" in shown or "17 rows read = 17 used + 0 set aside" in shown
    assert "train_runtime" in shown


def _token_mean(run: Path, steps: list[dict[str, Any]]) -> float:
    return sum(record["loss"] for record in steps) / len(steps)


def test_run_json_is_enough_to_do_it_again(base: Flags, tmp_path: Path) -> None:
    assert sft(base) == 0
    about = json.loads((run_of(tmp_path / "out") / "run.json").read_text())
    assert about["versions"]["torch"] == torch.__version__
    assert about["seed"] == about["data_seed"] == 42
    assert {Path(file).name for file in about["data"]} == {"train.jsonl", "val.jsonl"}
    assert about["tokens"]["train"] > about["tokens"]["supervised"] > 0
    assert about["hardware"]["processes"] == 1


def test_the_written_configuration_runs_again_with_the_same_bits(base: Flags, tmp_path: Path) -> None:
    assert sft(base) == 0
    first = run_of(tmp_path / "out")
    assert swift("sft", "--config", first / "args.json", "--output_dir", tmp_path / "again") == 0
    weights = [load_file(run / "checkpoint-6/adapter_model.safetensors") for run in (first, run_of(tmp_path / "again"))]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("train_type", ["lora", "full"])
def test_a_resumed_run_ends_with_the_same_bits(base: Flags, tmp_path: Path, train_type: str) -> None:
    base |= {"train_type": train_type, "neftune_noise_alpha": 5}
    assert sft(base) == 0
    whole = run_of(tmp_path / "out")
    again = tmp_path / "again"
    assert sft(base, resume_from_checkpoint=whole / "checkpoint-4", output_dir=again) == 0
    name = "adapter_model.safetensors" if train_type == "lora" else "model.safetensors"
    a, b = (load_file(run / "checkpoint-6" / name) for run in (whole, run_of(again)))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    losses = [r["loss"] for r in log_of(whole) if "loss" in r]
    assert [r["loss"] for r in log_of(run_of(again)) if "loss" in r] == losses[4:]


def test_what_was_counted_since_the_last_logged_step_is_kept(base: Flags, tmp_path: Path) -> None:
    """Checkpoints fall between logged steps: the resumed log is that of the run which was not interrupted."""
    base |= {"logging_steps": 3, "save_steps": 4, "num_train_epochs": 4, "eval_steps": 100}
    assert sft(base) == 0
    whole = run_of(tmp_path / "out")
    again = tmp_path / "again"
    assert sft(base, resume_from_checkpoint=whole / "checkpoint-4", output_dir=again) == 0
    a, b = (
        [[r[key] for key in ("loss", "acc", "grad_norm", "learning_rate")] for r in log_of(run) if "loss" in r]
        for run in (whole, run_of(again))
    )
    assert len(a) == 5  # steps 1, 3, 6, 9, 12
    assert b == a[2:]
    assert log_of(whole)[-1]["train_loss"] == log_of(run_of(again))[-1]["train_loss"]


def test_a_run_that_ended_before_its_totals_were_logged_is_brought_to_its_end(base: Flags, tmp_path: Path) -> None:
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    lines = (run / "logging.jsonl").read_text().splitlines()
    (run / "logging.jsonl").write_text("\n".join(lines[:-1]) + '\n{"train_runt')  # as a kill leaves it
    assert sft(base, resume_from_checkpoint="true") == 0
    assert log_of(run)[:-1] == [json.loads(line) for line in lines[:-1]]
    assert log_of(run)[-1]["train_loss"] == json.loads(lines[-1])["train_loss"]


def test_a_saved_model_opens_in_plain_transformers(base: Flags, tmp_path: Path, tiny_qwen2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sft(base, train_type="full", torch_dtype="bfloat16", max_steps=1) == 0
    folder = run_of(tmp_path / "out") / "checkpoint-1"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == hardware.choose_dtype("bfloat16", None, torch.device("cpu"))[0]
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (
        AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(tiny_qwen2).chat_template
    )


def test_the_best_and_the_last_checkpoint_are_kept(base: Flags, tmp_path: Path) -> None:
    worst = {"metric_for_best_model": "loss", "greater_is_better": "true"}
    assert sft(base, eval_steps=1, save_steps=1, save_total_limit=1, **worst) == 0
    run = run_of(tmp_path / "out")
    kept = {path.name for path in run.glob("checkpoint-*")}
    losses = {int(r["global_step/max_steps"].split("/")[0]): r["eval_loss"] for r in log_of(run) if "eval_loss" in r}
    best = max(losses, key=lambda step: losses[step])
    assert kept == {f"checkpoint-{best}", "checkpoint-6", "checkpoint-best"}
    assert best != 6


def test_early_stopping_waits_as_long_as_it_is_told(base: Flags, tmp_path: Path) -> None:
    assert sft(base, learning_rate=0, eval_steps=1, early_stop_interval=2) == 0
    log = log_of(run_of(tmp_path / "out"))
    assert [r["global_step/max_steps"] for r in log if "eval_loss" in r] == ["1/6", "2/6", "3/6"]
    assert (run_of(tmp_path / "out") / "checkpoint-3").exists()


def test_evaluation_at_the_start_is_the_untrained_model(base: Flags, tmp_path: Path, tiny_qwen2: Path) -> None:
    assert sft(base, eval_on_start="true", max_steps=1) == 0
    log = log_of(run_of(tmp_path / "out"))
    assert log[0]["global_step/max_steps"] == "0/1"
    assert log[0]["eval_loss"] == pytest.approx(6.4, abs=0.5)  # ln 608: a random model knows nothing


def test_generated_answers_are_scored(base: Flags, tmp_path: Path) -> None:
    assert sft(base, predict_with_generate="true", max_new_tokens=8, max_steps=2) == 0
    run = run_of(tmp_path / "out")
    record = next(r for r in log_of(run) if "eval_loss" in r)
    assert {"eval_rouge-1", "eval_rouge-2", "eval_rouge-l", "eval_bleu-4"} <= record.keys()
    answers = [json.loads(line) for line in (run / "predictions-2.jsonl").read_text().splitlines()]
    assert len(answers) == 5
    assert all(answer["labels"] for answer in answers)


@pytest.mark.parametrize(
    "flags",
    [
        {"train_type": "full", "use_galore": "true", "galore_rank": 8, "galore_update_proj_gap": 2},
        {"lorap_lr_ratio": 16},
        {"use_dora": "true"},
        {"gradient_checkpointing": "true"},
        {"optim": "adafactor"},
    ],
    ids=str,
)
def test_ways_of_training_learn_and_resume(base: Flags, tmp_path: Path, flags: Flags) -> None:
    assert sft(base, **flags) == 0
    run = run_of(tmp_path / "out")
    losses = [record["eval_loss"] for record in log_of(run) if "eval_loss" in record]
    assert losses[-1] < losses[0]
    again = tmp_path / "again"
    assert sft(base, **flags, resume_from_checkpoint=run / "checkpoint-4", output_dir=again) == 0
    name = "model.safetensors" if "train_type" in flags else "adapter_model.safetensors"
    a, b = (load_file(r / "checkpoint-6" / name) for r in (run, run_of(again)))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_checkpointing_does_not_change_the_numbers(base: Flags, tmp_path: Path) -> None:
    losses = []
    for setting in ("true", "false"):
        out = tmp_path / setting
        assert sft(base, gradient_checkpointing=setting, max_steps=3, output_dir=out) == 0
        losses.append([record["loss"] for record in log_of(run_of(out)) if "loss" in record])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_saves_and_says_how_to_go_on(base: Flags, tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-m", "swiftune.cli.main", "sft", *words(base | {"num_train_epochs": 2000})]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = tmp_path / "out"
        deadline = time.time() + 60
        while not list(log.glob("v*/logging.jsonl")) and time.time() < deadline:
            time.sleep(0.1)
        process.send_signal(how)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert "Traceback" not in shown
    told = re.search(r"swift sft --config (\S+) --resume_from_checkpoint (\S+)", shown)
    assert told, shown
    step = int(told[2].rsplit("-", 1)[1])
    assert swift("sft", "--config", told[1], "--resume_from_checkpoint", told[2], "--max_steps", step + 2, *ANYWAY) == 0
    run = run_of(tmp_path / "out")  # it goes on in the same folder
    steps = [int(r["global_step/max_steps"].split("/")[0]) for r in log_of(run) if "loss" in r]
    assert steps == list(range(1, step + 3))


def test_a_finished_run_is_not_resumed_and_changed_flags_are_named(
    base: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    assert sft(base, resume_from_checkpoint=run / "checkpoint-6") == 2
    assert "at step 6, and the run has 6 steps: nothing is left to do" in capfd.readouterr().err
    assert sft(base, resume_from_checkpoint=run / "checkpoint-4", gradient_accumulation_steps=2) == 2
    said = capfd.readouterr().err
    assert "differs in the rows of a step (4 then, 2 now)" in said
    assert sft(base, resume_from_checkpoint=run / "checkpoint-4", learning_rate=1e-2, lora_dropout=0) == 2
    said = capfd.readouterr().err
    assert "--learning_rate (0.001 then, 0.01 now), --lora_dropout (0.1 then, 0.0 now)" in said
    assert "--resume_anyway true" in said
    assert sft(base, resume_from_checkpoint=run / "checkpoint-4", learning_rate=1e-2, resume_anyway="true") == 0
    assert "The run will not end as it would have" in capfd.readouterr().err


def test_going_on_from_an_older_checkpoint_leaves_the_newer_ones_alone(base: Flags, tmp_path: Path) -> None:
    assert sft(base) == 0
    run = run_of(tmp_path / "out")
    before = {path.name for path in run.glob("checkpoint-*")}
    assert sft(base, resume_from_checkpoint=run / "checkpoint-2", save_total_limit=1) == 0
    assert {path.name for path in run.glob("checkpoint-*")} == before
    (new,) = set((tmp_path / "out").glob("v*-*")) - {run}
    assert (new / "checkpoint-6").exists()


def test_a_second_run_into_the_same_folder_is_refused(base: Flags, tmp_path: Path) -> None:
    assert sft(base, add_version="false", max_steps=1) == 0
    assert sft(base, add_version="false", max_steps=1) == 2
    assert sft(base, add_version="false", max_steps=2, resume_from_checkpoint="true", resume_anyway="true") == 0


def test_modules_to_save_are_trained_in_float32_over_a_bfloat16_base(base: Flags, tmp_path: Path) -> None:
    assert sft(base, modules_to_save="lm_head", torch_dtype="bfloat16", max_steps=2, learning_rate=1e-5) == 0
    saved = load_file(run_of(tmp_path / "out") / "checkpoint-2/adapter_model.safetensors")
    heads = {key: value for key, value in saved.items() if "lm_head" in key}
    assert heads
    assert all(value.dtype == torch.float32 for value in heads.values())
    # Steps of 1e-5 would vanish from bfloat16 weights of about 0.02.
    assert any((value != value.to(torch.bfloat16).float()).any() for value in heads.values())


def test_training_goes_on_from_an_adapter(base: Flags, tmp_path: Path) -> None:
    assert sft(base, eval_on_start="true") == 0
    first = log_of(run_of(tmp_path / "out"))
    assert sft(base, adapters=run_of(tmp_path / "out"), eval_on_start="true", output_dir=tmp_path / "next") == 0
    second = log_of(run_of(tmp_path / "next"))
    best = min(r["eval_loss"] for r in first if "eval_loss" in r)
    assert second[0]["eval_loss"] == pytest.approx(best, rel=1e-6)
    assert second[0]["eval_loss"] < first[0]["eval_loss"]


def test_pt_learns_every_token_of_raw_text(tiny_qwen2: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = ["The capital of France is Paris.", "Give three tips for staying healthy: sleep enough."]
    data = write_jsonl(tmp_path / "raw.jsonl", [{"text": text} for text in texts])
    flags = {"model": tiny_qwen2, "dataset": data, "torch_dtype": "float32", "max_steps": 1, "output_dir": tmp_path}
    assert swift("pt", *words(flags | {"train_dataloader_shuffle": "false"})) == 0
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen2)
    loss, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        predicted = ids.shape[1] - 1
        loss += model(input_ids=ids, labels=ids).loss.item() * predicted
        count += predicted
    assert log_of(run_of(tmp_path))[0]["loss"] == pytest.approx(loss / count, rel=1e-5)


def test_a_stream_trains_as_the_same_rows_from_disk(base: Flags, tmp_path: Path) -> None:
    base |= {"train_dataloader_shuffle": "false", "max_steps": 5, "lora_dropout": 0}
    assert sft(base) == 0
    assert sft(base, streaming="true", output_dir=tmp_path / "stream") == 0
    disk, stream = (
        [(r["loss"], r["grad_norm"]) for r in log_of(run_of(tmp_path / name)) if "loss" in r]
        for name in ("out", "stream")
    )
    assert stream == disk  # 5 steps of 4 rows: into the second epoch of 12 rows


@pytest.fixture
def mixed_stream(base: Flags, tmp_path: Path) -> Flags:
    """Two mixed streams, rows in them that are set aside when read and when tokenized; several epochs of them."""
    long = {"messages": [{"role": "user", "content": "who " * 90}, {"role": "assistant", "content": "you"}]}
    no_answer = {"messages": [{"role": "user", "content": "who"}]}
    first = write_jsonl(tmp_path / "first.jsonl", [*chats(40, seed=1), long, no_answer, *chats(9, seed=2)])
    second = tmp_path / "second.jsonl.gz"
    plain = write_jsonl(tmp_path / "second.jsonl", [no_answer, *chats(70, seed=3), long])
    second.write_bytes(gzip.compress(plain.read_bytes()))
    del base["dataset"], base["val_dataset"], base["eval_steps"], base["num_train_epochs"]
    return {
        # A list of two is two words, so it comes from a file.
        "config": _yaml(tmp_path / "data.yaml", {"dataset": [str(first), str(second)], "interleave_prob": [0.6, 0.4]}),
        **base,
        "streaming": "true",
        "stopping_strategy": "all_exhausted",
        "shuffle_buffer_size": 20,
        "max_length": 64,
        "max_bad_rows": "100%",
    }


def _yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(json.dumps(values))  # which is YAML
    return path


def _outcome(run: Path) -> tuple[Any, ...]:
    """All of a run that does not depend on the clock."""
    steps = [{key: r[key] for key in ("loss", "acc", "grad_norm", "learning_rate")} for r in log_of(run) if "loss" in r]
    last = max(run.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = json.loads((last / "trainer_state.json").read_text())
    totals = (state["step"], state["rows"], state["tokens"], state["loss_sum"], state["feed"])
    return (
        last.name,
        (last / "adapter_model.safetensors").read_bytes(),
        steps,
        totals,
        (run / "set_aside.jsonl").read_text(),
    )


def test_a_stream_gone_on_with_ends_as_one_that_was_not_interrupted(mixed_stream: Flags, tmp_path: Path) -> None:
    flags = mixed_stream | {"max_steps": 90, "save_steps": 37, "save_total_limit": 9}
    assert sft(flags) == 0
    run = run_of(tmp_path / "out")
    for step in (37, 74):
        again = tmp_path / f"from-{step}"
        shutil.copytree(run, again / run.name)
        for newer in range(step + 1, 91):
            shutil.rmtree(again / run.name / f"checkpoint-{newer}", ignore_errors=True)
        assert sft(flags, output_dir=again, resume_from_checkpoint="true") == 0
        assert _outcome(run_of(again)) == _outcome(run)
    assert len(_outcome(run)[-1].splitlines()) > 9


def test_a_stream_stopped_by_ctrl_c_ends_as_one_that_was_not(mixed_stream: Flags, tmp_path: Path) -> None:
    flags = mixed_stream | {"max_steps": 300, "save_steps": 1000}
    assert sft(flags) == 0
    command = [sys.executable, "-m", "swiftune.cli.main", "sft", *words(flags | {"output_dir": tmp_path / "stopped"})]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.time() + 60
        while not list((tmp_path / "stopped").glob("v*/logging.jsonl")) and time.time() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130, shown
    assert sft(flags, output_dir=tmp_path / "stopped", resume_from_checkpoint="true") == 0
    assert _outcome(run_of(tmp_path / "stopped")) == _outcome(run_of(tmp_path / "out"))


def test_a_stream_whose_file_has_changed_is_not_gone_on_with(
    mixed_stream: Flags, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sft(mixed_stream, max_steps=2) == 0
    write_jsonl(tmp_path / "first.jsonl", chats(50, seed=4))
    assert sft(mixed_stream, max_steps=4, resume_from_checkpoint="true", resume_anyway="true") == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "first.jsonl has changed since the checkpoint was written" in said
    assert "Traceback" not in said
