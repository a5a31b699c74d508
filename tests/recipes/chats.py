"""Small chat data, and ways to train on it as a user would."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from swiftune.cli.main import main

Flags = dict[str, Any]

_WORDS = (
    *("who", "are", "you", "what", "can", "do", "helpful", "assistant", "question", "answer"),
    *("capital", "of", "France", "Paris", "tips", "health", "day"),
)


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random single-round chats of differing lengths."""
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(rng.choices(_WORDS, k=rng.randint(2, most)))

    return [
        {"messages": [{"role": "user", "content": words(8)}, {"role": "assistant", "content": words(16)}]}
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def swift(*argv: object) -> int:
    """Runs the command line in this process."""
    return main([str(word) for word in argv])


def words(flags: Flags) -> list[str]:
    """Flags as they are typed."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def sft(flags: Flags, **changes: Any) -> int:
    """Runs ``swift sft`` with ``flags``, some of them changed."""
    return swift("sft", *words(flags | changes))


def run_of(output_dir: Path) -> Path:
    """The only run in an output folder."""
    (run,) = output_dir.glob("v*-*")
    return run


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
