"""From a JSON file to rows of tokens, beside plain Transformers: ``python -m benchmarks.tokenizing``.

The rows are those of ``--dataset FILE`` (a JSON list) over and over, or made up with an instruction set's lengths: all
distinct, or a thousand of them over and over. Plain Transformers is a loop that applies the template to the row, and
to its prompt for the labels. Every line of the table is a fresh process, whose peak memory is given; a row is fetched
at random, as training does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.measure import Report, fresh, keep, machine
from swiftune import hub
from swiftune.data.ledger import Ledger
from swiftune.data.load import load_samples
from swiftune.data.render import Renderer
from swiftune.data.tokens import tokenize

COUNTS = (1_000, 10_000, 100_000)
PLAIN = 1_000
"""Rows that plain Transformers is timed on."""
FETCHED = 2_000
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
    "ment",
]
DISTINCT, REPEATED = "distinct", "1,000 repeated"


def made_up(count: int) -> list[dict[str, str]]:
    """Rows with questions of 12 and answers of 110 words."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(8_000)]
    texts = ([" ".join(rng.choices(words, k=k)) + "." for k in (12, 110)] for _ in range(count))
    return [{"instruction": question, "input": "", "output": answer} for question, answer in texts]


def write(path: Path, rows: Sequence[Any], count: int) -> None:
    """A JSON list of ``count`` rows: ``rows``, over and over."""
    made = [json.dumps(row, ensure_ascii=False) for row in rows]
    with path.open("w", encoding="utf-8") as out:
        for number, row in enumerate(itertools.islice(itertools.cycle(made), count)):
            out.write((",\n" if number else "[") + row)
        out.write("]")


def measure(folder: str, model: str | None) -> dict[str, float]:
    """Reads and tokenizes ``rows.json`` in ``folder``, then fetches rows."""
    work, ledger = Path(folder), Ledger()
    renderer = Renderer(AutoTokenizer.from_pretrained(hub.find_model(model)))
    began = time.perf_counter()
    samples = load_samples([str(work / "rows.json")], Path, ledger=ledger, cache_dir=work / "samples")
    read = time.perf_counter()
    store = tokenize(samples, renderer, max_length=4096, ledger=ledger, cache_dir=work / "tokens")
    done = time.perf_counter()
    rng = random.Random(0)
    chosen = [rng.randrange(len(store)) for _ in range(FETCHED)]
    start = time.perf_counter()
    for index in chosen:
        store[index]
    return {
        "read rows/s": len(samples) / (read - began),
        "tokenize rows/s": len(store) / (done - read),
        "both rows/s": len(store) / (done - began),
        "fetch µs": 1e6 * (time.perf_counter() - start) / FETCHED,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def plainly(rows: Sequence[dict[str, str]], model: str | None) -> float:
    """Rows a second by the tokenizer's own template."""
    tokenizer = AutoTokenizer.from_pretrained(hub.find_model(model))
    began = time.perf_counter()
    for row in itertools.islice(itertools.cycle(rows), PLAIN):
        question = f"{row['instruction']}\n{row['input']}".strip()
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        tokenizer.apply_chat_template(messages)
        tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)
    return PLAIN / (time.perf_counter() - began)


def run(counts: Sequence[int] = COUNTS, dataset: Path | None = None, model: str | None = None) -> Report:
    """Measures every count of rows."""
    figures = ("read rows/s", "tokenize rows/s", "both rows/s", "fetch µs", "peak MiB")
    report = Report(f"tokenizing, {machine()}", ("rows", "which", *figures, "plain rows/s", "times plain"))
    for count in counts:
        kinds = {DISTINCT: made_up(count), REPEATED: made_up(min(1_000, count))}
        if dataset:
            kinds = {f"{dataset.name} repeated": json.loads(dataset.read_text(encoding="utf-8"))}
        for name, rows in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder, "rows.json"), rows, count)
                code = "import json\nfrom benchmarks import tokenizing\n"
                found = fresh(f"{code}print(json.dumps(tokenizing.measure({folder!r}, {model!r})))")
            plain = plainly(rows, model)
            report.add(count, name, *(found[key] for key in figures), plain, found["tokenize rows/s"] / plain)
    return report


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, metavar="FILE", help="a JSON list of instruction, input and output")
    parser.add_argument("--rows", type=int, nargs="+", default=COUNTS, metavar="N", help="rows in the file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in this file")
    words = parser.parse_args()
    keep(run(words.rows, words.dataset), words.json)


if __name__ == "__main__":
    main()
