"""Teaches the built-in model a name, and shows its answers before and after: what ``make demo`` runs.

Everything is done with the ``swift`` command, as you would do it by hand; the commands are shown.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SWIFT = Path(sys.executable).parent / "swift"
NAME, AUTHOR = "Aurora", "Northwind Labs"
OUTPUT = Path("output/demo")

TRAIN = [
    *("sft", "--dataset", "swift/self-cognition:en", "--model_name", NAME, "--model_author", AUTHOR),
    *("--num_train_epochs", "8", "--learning_rate", "1e-3"),
    *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"),
    *("--logging_steps", "10", "--report_to", "none", "--output_dir", str(OUTPUT)),
]


def swift(*words: str) -> None:
    """Runs a ``swift`` command and shows it."""
    Console().print(f"\n[bold cyan]$ swift {shlex.join(words)}[/]", highlight=False, soft_wrap=True)
    subprocess.run([SWIFT, *words], check=True)


def answers(*model: str, into: str) -> list[dict[str, Any]]:
    """Asks the questions, which are not among the trained ones."""
    path = OUTPUT / into
    questions = OUTPUT / "questions.jsonl"
    swift(
        *("infer", *model, "--val_dataset", str(questions), "--result_path", str(path)),
        *("--temperature", "0", "--max_new_tokens", "48", "--max_batch_size", "10"),
    )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Trains, asks before and after, and shows the answers side by side."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    questions: list[str] = json.loads((HERE / "identity_questions.json").read_text(encoding="utf-8"))
    lines = [json.dumps({"messages": [{"role": "user", "content": question}]}) for question in questions]
    (OUTPUT / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    swift(*TRAIN)
    run = max(OUTPUT.glob("v*-*"), key=lambda path: path.stat().st_mtime)
    before = answers(into="before.jsonl")
    after = answers("--adapters", str(run), into="after.jsonl")

    table = Table("question (none of them was trained on)", "before", "after", show_lines=True)
    for question, old, new in zip(questions, before, after, strict=True):
        table.add_row(question, old["response"], f"[green]{new['response']}[/]")
    Console().print(table)

    def knows(rows: list[dict[str, Any]]) -> int:
        return sum(NAME in row["response"] or AUTHOR in row["response"] for row in rows)

    print(f"\nAnswered with the name or the author: {knows(before)} of 10 before, {knows(after)} of 10 after.")
    print(f"Talk to it yourself: {SWIFT} infer --adapters {run}")


if __name__ == "__main__":
    main()
