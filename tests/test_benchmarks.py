"""Every benchmark runs, small, and what its table says fits together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks import attention, load, lora_layers, loss, measure, quality, serving, startup, tokenizing, training

from tests.recipes.chats import chats


def test_a_ratio_is_of_neighbours() -> None:
    timed = measure.Timed([[2.0, 20.0, 4.0], [1.0, 10.0, 1.0]])
    assert timed.median(0) == 4
    assert timed.ratio(0) == 2
    assert timed.ratio(1) == 1


def test_the_operations_of_a_step_are_those_of_the_products() -> None:
    class Config:
        hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads = 8, 2, 2, 1
        intermediate_size, vocab_size = 16, 32

    weights = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    linear = 10 * weights + 4 * 8 * 32
    triangle = 3 * 2 * (2 * 2 * 8 * 10**2 / 2)
    assert measure.step_flops(Config(), [10], 4) == 4 * linear + triangle
    assert measure.step_flops(Config(), [10], 4, full=True) == 6 * linear + triangle


def test_figures_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = measure.Report("a title", ("what", "seconds"))
    report.add("this", 0.25)
    measure.keep(report, tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text())["rows"] == [{"what": "this", "seconds": 0.25}]
    assert "0.25" in capsys.readouterr().out


def test_attention_compares_equals() -> None:
    qkv = attention.inputs((4, 2, 16), 64)
    expected = attention.by_row([x.float() for x in qkv], 16)
    for kind in (attention.masked, attention.ours):
        torch.testing.assert_close(kind(qkv, 16).float(), expected, rtol=2e-2, atol=2e-2)
    (row,) = attention.run([16], ["SmolLM2-135M"], tokens=64, repeats=1).rows
    assert row["times row by row"] == pytest.approx(row["row by row"] / row["ours"])


def test_loss_compares_equals() -> None:
    parts = loss.case(64, 32, 500)
    (theirs, their_grad), (ours, own_grad), (exact, exact_grad) = (
        f(*parts) for f in (loss.theirs, loss.ours, loss.exact)
    )
    assert ours == pytest.approx(exact, rel=1e-3)
    assert theirs == pytest.approx(exact, rel=1e-3)
    for grad in (their_grad, own_grad):
        torch.testing.assert_close(grad.double(), exact_grad, rtol=5e-2, atol=1e-2)


@pytest.mark.slow
def test_loss_weighs_in_fresh_processes() -> None:
    theirs, ours = loss.run([(512, 64, 30_000)], repeats=1).rows
    assert theirs["MiB"] > ours["MiB"] > 1
    assert theirs["times ours"] == pytest.approx(theirs["seconds"] / ours["seconds"])


def test_lora_layers_are_all_timed() -> None:
    report = lora_layers.run(["SmolLM2-135M"], tokens=8, ranks=[4], dropouts=[0.0], repeats=1)
    assert [row["layers"] for row in report.rows] == ["q k v", "o", "gate up", "down"]
    assert all(row["ratio"] == pytest.approx(row["PEFT"] / row["ours"]) for row in report.rows)


@pytest.mark.slow
def test_startup_is_timed(tiny_qwen2: Path) -> None:
    rows = {row["what"]: row for row in startup.run(str(tiny_qwen2), repeats=1, libraries=["json"]).rows}
    assert 0 < rows["swift sft, to the first step"]["wall"] < rows["swift sft, one step, to exit"]["wall"]
    assert rows["swift sft --help"]["CPU"] < rows["swift sft, to the first step"]["CPU"]


@pytest.mark.slow
def test_quality_is_kept(tiny_qwen2: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in chats(24)))
    rows = {row["by"]: row for row in quality.run(data, str(tiny_qwen2), train=16, unseen=8, per_step=4).rows}
    assert rows["Transformers + PEFT"]["%"] == 0
    assert abs(rows["swift sft"]["%"]) < 0.5
    assert rows["nobody"]["loss"] != rows["Transformers + PEFT"]["loss"]


def test_training_is_timed_on_the_same_rows(tiny_qwen2: Path) -> None:
    (row,) = training.run({"3 rows": [5, 9, 7]}, repeats=1, model=str(tiny_qwen2)).rows
    assert row["tokens"] == 21
    assert row["times one by one"] == pytest.approx(row["ours"] / row["one by one"])
    assert row["times padded"] == pytest.approx(row["ours"] / row["padded"])
    assert 0 < row["MFU"] < 1


@pytest.mark.slow
def test_tokenizing_is_timed_on_the_rows_it_names(tiny_qwen2: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(tokenizing.made_up(5)))
    (row,) = tokenizing.run([12], data, str(tiny_qwen2)).rows
    assert row["rows"] == 12
    assert row["times plain"] == pytest.approx(row["tokenize rows/s"] / row["plain rows/s"])
    assert row["both rows/s"] < row["tokenize rows/s"]


def test_serving_is_timed_for_every_client(tiny_qwen2: Path) -> None:
    names = [name for name in serving.CONTENDERS if "vLLM" not in name]  # whose attention takes no heads as small
    rows = serving.run([1, 3], names, model=str(tiny_qwen2), tokens=4, dtype=torch.float32).rows
    assert [(row["clients"], row["by"]) for row in rows] == [(n, name) for n in (1, 3) for name in names]
    assert all(0 < row["first token"] <= row["worst first"] and row["tokens/s"] > 0 for row in rows)
    assert rows[0]["times one by one"] == 1


def test_a_load_is_reported() -> None:
    seen = load.Seen([0.1, 0.3], [0.02] * 98 + [0.5, 0.6], answers=2, tokens=100)
    seen.memory = [(second, (500 + second) * 2**20) for second in range(60)]
    figures = load.report(seen, 50)
    assert figures["tokens/s"] == 2
    assert figures["first token (s)"] == {"p50": 0.2, "p95": 0.29, "p99": 0.298, "max": 0.3}
    assert figures["gap between tokens (s)"]["p50"] == 0.02
    assert figures["memory (MiB)"]["slope of second half (MiB/min)"] == pytest.approx(60)


@pytest.mark.parametrize(
    ("first", "second", "flat"), [(400, 55, True), (400, 75, False), (100, 230, True), (20, 320, False)]
)
def test_memory_may_grow_while_the_cache_fills(first: int, second: int, flat: bool) -> None:
    """Of MiB in the halves of a run: 256 are the cache's."""
    seen = load.Seen(answers=1)
    seen.memory = [(t, int((500 + first * min(t, 60) / 60 + second * max(t - 60, 0) / 60) * 2**20)) for t in range(121)]
    figures = load.report(seen, 120)
    assert figures["memory (MiB)"]["may be"] == max(256 - 0.75 * first, 0) + load.MARGIN
    assert load.grew(figures) is not flat


@pytest.mark.slow
def test_good_clients_meet_no_error_beside_bad_ones(tiny_qwen2: Path) -> None:
    words = ["--minutes", "0.4", "--clients", "8", "--model", str(tiny_qwen2), "--max_tokens", "24"]
    command = [sys.executable, "-m", "benchmarks.load", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["answers"] > 8
    assert figures["errors"] == 0
    assert set(figures["nuisances"]) == {"left", "stalled", "rubbish"}
    assert figures["exit code of the server"] == 143
    assert all(int(status) < 500 for status in figures["statuses of rubbish"])
