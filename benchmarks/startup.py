"""From a command to its first step: ``python -m benchmarks.startup``.

``swift sft`` on eight rows with the built-in model, in a process of its own; beside it what the libraries alone take
to be imported. CPU seconds hold on a busy machine, wall seconds on an idle one only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Report, command, machine

FLAGS = "--torch_dtype bfloat16 --max_steps 1 --logging_first_step true --save_strategy no --report_to none"
PROBE = """
import os, sys, time
from swiftune.cli import main
from swiftune.runtime import garbage

def look(go_on=garbage.look_as_usual):  # called when all is loaded, right before the first step
    go_on()
    used = os.times()
    print("ready", time.time(), used.user + used.system, file=sys.stderr)

garbage.look_as_usual = look
sys.exit(main.main(sys.argv[1:]))
"""


def timed(*argv: str) -> tuple[float, float, str]:
    """Wall and CPU seconds of a process, and what it wrote to stderr."""
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used, done.stderr


def training(model: str | None, work: Path) -> list[tuple[str, float, float]]:
    """Wall and CPU seconds to the first step, and of the whole of a one-step run."""
    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A small model."}]
    (work / "rows.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(8)))
    words = ["sft", "--dataset", str(work / "rows.jsonl"), "--output_dir", str(work / "out"), *FLAGS.split()]
    began = time.time()
    wall, used, said = timed("-c", PROBE, *words, *(("--model", model) if model else ()))
    ready, used_then = next(map(float, line.split()[1:]) for line in said.splitlines() if line.startswith("ready "))
    return [("swift sft, to the first step", ready - began, used_then), ("swift sft, one step, to exit", wall, used)]


def run(
    model: str | None = None, repeats: int = 3, libraries: Sequence[str] = ("torch", "transformers", "peft")
) -> Report:
    """Times the command, its help, and the imports it cannot do without."""
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for name, *seconds in training(model, Path(folder)):
                found.setdefault(name, []).append((seconds[0], seconds[1]))
            helped = timed("-m", "swiftune.cli.main", "sft", "--help")
            found.setdefault("swift sft --help", []).append(helped[:2])
            for library in libraries:
                found.setdefault(f"import {library}", []).append(timed("-c", f"import {library}")[:2])
    report = Report(f"start-up, seconds, median of {repeats}, {machine()}", ("what", "wall", "CPU"))
    for name, pairs in found.items():
        report.add(name, *(statistics.median(kind) for kind in zip(*pairs, strict=True)))
    return report


if __name__ == "__main__":
    command(run)
