"""From a JSON file to rows of tokens, beside plain Transformers: ``python -m benchmarks.tokenizing``.

Made-up rows of an instruction set's lengths, all distinct or a thousand of them over and over. Plain Transformers is a
loop that applies the template to the row, and to its prompt for the labels. Peak memory is the process's so far.
"""

from __future__ import annotations

import json
import os
import random
import resource
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from swiftune import hub
from swiftune.data.ledger import Ledger
from swiftune.data.load import load_samples
from swiftune.data.render import Renderer
from swiftune.data.tokens import tokenize

COUNTS, PLAIN = (1_000, 10_000, 50_000), 1_000
SYLLABLES = [
    "ka",
    "to",
    "mi",
    "ren",
    "sol",
    "ba",
    "ti",
    "on",
    "er",
    "ing",
    "the",
    "a",
    "st",
    "ly",
    "pro",
    "con",
    "de",
    "re",
    "ex",
    "ment",
]


def write(path: Path, count: int, distinct: int) -> None:
    """A JSON list of ``count`` rows."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(8_000)]
    made: list[str] = []
    with path.open("w") as out:
        for number in range(count):
            if number < distinct:
                question, answer = (" ".join(rng.choices(words, k=k)) + "." for k in (12, 110))
                made.append(json.dumps({"instruction": question, "input": "", "output": answer}))
            out.write(("[" if number == 0 else ",\n") + made[number % distinct])
        out.write("]")


def main() -> None:
    """Prints the table."""
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(None))
    renderer = Renderer(tokenizer)
    table = Table("rows", "", "read rows/s", "tokenize rows/s", "plain rows/s", "ratio", "peak RSS", title="tokenizing")
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            for name, distinct in (("distinct", count), ("repeated", 1_000)):
                file, ledger = Path(folder, "rows.json"), Ledger()
                write(file, count, min(distinct, count))
                cache = Path(folder, f"{count}-{name}")
                t0 = time.perf_counter()
                samples = load_samples([str(file)], Path, ledger=ledger, cache_dir=cache / "samples")
                t1 = time.perf_counter()
                tokenize(samples, renderer, max_length=4096, ledger=ledger, cache_dir=cache / "tokens")
                t2 = time.perf_counter()
                for index in range(PLAIN):
                    messages = samples[index].messages
                    tokenizer.apply_chat_template(messages)
                    tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)
                plain = PLAIN / (time.perf_counter() - t2)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
                rates = count / (t1 - t0), count / (t2 - t1), plain
                ratio = f"{count / (t2 - t1) / plain:.1f}"
                table.add_row(f"{count:,}", name, *(f"{rate:,.0f}" for rate in rates), ratio, f"{peak} MB")
    Console().print(table, f"{len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
