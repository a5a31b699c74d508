"""What the benchmarks share: timing in turn, the machine's matmul peak, tables, and figures kept in a file.

A shared machine's speed drifts by the minute. So contenders run in turn, and a ratio is the median of the ratios of
neighbouring runs, not the ratio of two medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from swiftune.runtime import hardware

Run = Callable[[], object]

DTYPE, _ = hardware.choose_dtype("bfloat16", None, torch.device("cpu"))
"""What is computed in: bfloat16, or float32 on a processor that knows no products in it, as training does."""
DTYPE_NAME = str(DTYPE).removeprefix("torch.")


@dataclass
class Timed:
    """Seconds of contenders that ran in turn; the last is ours."""

    seconds: list[list[float]]

    def median(self, contender: int) -> float:
        """Seconds of a contender."""
        return statistics.median(self.seconds[contender])

    def ratio(self, contender: int) -> float:
        """How many times as long as ours a contender takes."""
        return statistics.median(a / b for a, b in zip(self.seconds[contender], self.seconds[-1], strict=True))


def in_turn(runs: Sequence[Run], repeats: int = 5) -> Timed:
    """Times ``runs`` one after the other, ``repeats`` times, after a first time that does not count."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            taken.append(time.perf_counter() - began)
    return Timed(seconds)


def autocast() -> torch.autocast:
    """As a plain loop computes in ``DTYPE`` over adapters in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 == DTYPE)


def peak_flops(size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product in ``DTYPE``: the best that this machine was seen to do now."""
    a, b = (torch.randn(size, size).to(DTYPE) for _ in range(2))
    best = min(in_turn([lambda: a @ b], repeats).seconds[0])
    return 2 * size**3 / best


def step_flops(config: Any, lengths: Sequence[int], supervised: int, *, full: bool = False) -> float:
    """Floating point operations that the model itself needs for one step, without any computed twice.

    A product of T x D with D x O is 2TDO. The gradient of its input is as much again, that of its weight, too (full
    tuning only; LoRA's own products are not counted). Attention is causal: half the square of a row's length, two
    products, whose backward is twice the forward. The head counts on supervised tokens only.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    query, key = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = layers * hidden * (2 * query + 2 * key + 3 * config.intermediate_size)
    products = 3 if full else 2
    linear = 2 * products * (sum(lengths) * weights + supervised * hidden * config.vocab_size)
    attention = 3 * layers * sum(2 * 2 * query * length**2 / 2 for length in lengths)
    return linear + attention


@dataclass
class Report:
    """A table on the terminal, and the same figures as JSON."""

    title: str
    columns: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """A row, one cell a column."""
        self.rows.append(dict(zip(self.columns, cells, strict=True)))

    def show(self) -> None:
        """Prints the table."""
        table = Table(title=self.title)
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(_figure(cell) for cell in row.values()))
        console = Console()
        console.width = max(console.width, 120)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)


def _figure(cell: Any) -> str:
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) else str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


def machine() -> str:
    """What the figures were taken on, in a line."""
    return f"{torch.get_num_threads()} CPU threads, PyTorch {torch.__version__}"


def added_memory(run: Run) -> float:
    """MiB by which this process's resident memory grows, at its peak, while ``run`` runs. Linux only."""

    def figure(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = figure("VmRSS")
    run()
    return figure("VmHWM") - before


def fresh(code: str) -> Any:
    """What a fresh process that runs ``code`` prints as JSON on its last line; so its peak memory is its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def command(benchmark: Callable[[], Report]) -> None:
    """Runs a benchmark from the command line; ``--json FILE`` keeps its figures."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="keep the figures in this file")
    keep(benchmark(), parser.parse_args().json)


def keep(report: Report, file: Path | None) -> None:
    """Shows a report, and writes it to ``file``."""
    report.show()
    if file:
        file.write_text(json.dumps({"title": report.title, "machine": machine(), "rows": report.rows}, indent=1) + "\n")
