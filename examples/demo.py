"""Teaches the built-in model a name, and shows its answers before and after: what ``make demo`` runs.

Everything is done with the ``swift`` command, as you would do it by hand; the commands are shown.

    python examples/demo.py --name Pixel --author "Paper Street"
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).resolve().parent
SWIFT = Path(sys.executable).parent / "swift"
TRAIN = [
    *("sft", "--dataset", "swift/self-cognition:en", "--num_train_epochs", "10", "--learning_rate", "1e-3"),
    *("--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"),
    *("--logging_steps", "10", "--report_to", "none"),
]


def swift(*words: str) -> None:
    """Runs a ``swift`` command and shows it."""
    Console().print(f"\n[bold cyan]$ swift {escape(shlex.join(words))}[/]", highlight=False, soft_wrap=True)
    if code := subprocess.run([SWIFT, *words], check=False).returncode:
        sys.exit(code)  # it has said why


def answers(questions: Path, *model: str, into: Path) -> list[str]:
    """Asks the questions, which are not among the trained ones."""
    swift(
        *("infer", *model, "--val_dataset", str(questions), "--result_path", str(into)),
        *("--temperature", "0", "--max_new_tokens", "48", "--max_batch_size", "10"),
    )
    return [json.loads(line)["response"] for line in into.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Trains, asks before and after, and shows the answers side by side."""
    parser = argparse.ArgumentParser(description="Teach a small model a name, and ask it before and after.")
    parser.add_argument("--name", default="Aurora", help="what it shall call itself (default: %(default)s)")
    parser.add_argument("--author", default="Northwind Labs", help="who made it (default: %(default)s)")
    parser.add_argument("--output", default="output/demo", type=Path, help="folder for the run (default: %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command that runs: it saves what it has

    args.output.mkdir(parents=True, exist_ok=True)
    questions: list[str] = json.loads((HERE / "identity_questions.json").read_text(encoding="utf-8"))
    asked = args.output / "questions.jsonl"
    lines = [json.dumps({"messages": [{"role": "user", "content": question}]}) for question in questions]
    asked.write_text("\n".join(lines) + "\n", encoding="utf-8")

    swift(*TRAIN, "--model_name", args.name, "--model_author", args.author, "--output_dir", str(args.output))
    run = max(args.output.glob("v*-*"), key=lambda path: path.stat().st_mtime)
    before = answers(asked, into=args.output / "before.jsonl")
    after = answers(asked, "--adapters", str(run), into=args.output / "after.jsonl")

    table = Table("question (none of them was trained on)", "before", "after", show_lines=True)
    for question, old, new in zip(questions, before, after, strict=True):
        table.add_row(question, escape(old), f"[green]{escape(new)}[/]")
    Console().print(table)

    def knows(responses: list[str]) -> int:
        return sum(args.name in response or args.author in response for response in responses)

    print(
        f"\nAnswered with the name or the author: {knows(before)} of {len(questions)} before, "
        f"{knows(after)} of {len(questions)} after."
    )
    print(f"Talk to it yourself: {SWIFT} infer --adapters {run}")


if __name__ == "__main__":
    main()
