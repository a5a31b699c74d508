"""Coverage-guided fuzzing of what reads other people's bytes: ``make fuzz``, or ``python -m tests.fuzz rows -runs=99``.

Whatever comes in, a target raises nothing but what is meant for the user. An input that breaks this is written to the
working directory as ``crash-…``, and is run again by naming it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["swiftune"]):
    from swiftune.config.commands import COMMANDS
    from swiftune.config.declare import arguments_of
    from swiftune.config.parse import parse
    from swiftune.data.formats import to_sample
    from swiftune.data.ledger import RowFault
    from swiftune.data.names import DatasetName
    from swiftune.data.sources import read_rows
from swiftune.errors import ArgumentsError, DataError, UsageError
from swiftune.runtime import console
from swiftune.types import Place, RawRow

HERE = Path(tempfile.mkdtemp(prefix="fuzz-"))
WORDS = [
    *("messages", "conversations", "conversation", "instruction", "input", "output", "query", "response", "prompt"),
    *("completion", "chosen", "rejected", "text", "system", "history", "tools", "role", "from", "content", "value"),
    *(
        "tool_calls",
        "function",
        "name",
        "arguments",
        "loss",
        "weight",
        "user",
        "assistant",
        "tool",
        "tool_call",
        "human",
    ),
]
LEAVES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    float("nan"),
    "",
    "[]",
    "{}",
    '{"name": "f"}',
    "[['a', 'b']]",
]


def rows(data: bytes) -> None:
    """Bytes → a row of any shape → a sample, or a fault of the row."""
    source = atheris.FuzzedDataProvider(data)
    value = _value(source, 5)
    columns = {"a": source.PickValueInList(WORDS)} if source.ConsumeBool() else None
    try:
        sample = to_sample(RawRow(Place("rows.jsonl", 1), value), columns, needs_answer=source.ConsumeBool())
    except RowFault:
        return
    json.dumps([sample.messages, sample.tools]).encode()


def _value(source: Any, depth: int) -> Any:
    kind = source.ConsumeIntInRange(0, 5 if depth else 3)
    if kind == 0:
        return source.PickValueInList(WORDS)
    if kind == 1:
        return source.PickValueInList(LEAVES)
    if kind == 2:
        return source.ConsumeUnicode(8)  # half surrogate pairs among them
    if kind == 3:
        return source.ConsumeUnicodeNoSurrogates(40)
    items = range(source.ConsumeIntInRange(0, 4))
    if kind == 4:
        return [_value(source, depth - 1) for _ in items]
    return {source.PickValueInList([*WORDS, "a"]): _value(source, depth - 1) for _ in items}


def files(data: bytes) -> None:
    """Bytes → a file of any format → samples, or a mistake that is explained."""
    ending, data = ENDINGS[data[0] % len(ENDINGS)] if data else ".json", data[1:]
    path = HERE / f"rows{ending}"
    path.write_bytes(data)
    try:
        for row in read_rows(path):
            if isinstance(row, RawRow):
                to_sample(row)
    except (DataError, RowFault):
        return


ENDINGS = [".json", ".jsonl", ".csv", ".json.gz", ".jsonl.zst", ".parquet"]


def words(data: bytes) -> None:
    """Bytes → names of data sets, a command line, and a file of arguments."""
    source = atheris.FuzzedDataProvider(data)
    command = source.PickValueInList(list(COMMANDS.values()))
    flags = list(arguments_of(command))
    line = []
    for _ in range(source.ConsumeIntInRange(0, 4)):
        flag = source.PickValueInList(flags) if source.ConsumeBool() else source.ConsumeUnicode(8)
        line += [f"--{flag}", *source.ConsumeUnicode(12).split(" ")]
    file = HERE / source.PickValueInList(["run.yaml", "run.json"])
    file.write_bytes(source.ConsumeBytes(source.remaining_bytes()))
    for text in line:
        _refused_or_not(lambda text=text: DatasetName.parse(text), UsageError)
    _refused_or_not(lambda: parse(command, line), ArgumentsError)
    _refused_or_not(lambda: parse(command, ["--config", str(file)]), ArgumentsError)


def _refused_or_not(work: Callable[[], Any], refusal: type[Exception]) -> None:
    with contextlib.suppress(refusal):
        work()


TARGETS = {"rows": rows, "files": files, "words": words}
GOOD = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
SEEDS = [
    *(bytes([ENDINGS.index(".jsonl")]) + GOOD, bytes([ENDINGS.index(".json")]) + b"[" + GOOD + b"]"),
    *(
        bytes([ENDINGS.index(".csv")]) + b'query,response\n"a,b",c\n',
        bytes([ENDINGS.index(".json.gz")]) + gzip.compress(GOOD),
    ),
    b"\x03dataset: rows.jsonl\nlora_rank: 8\ncolumns: {a: query}\n",
]


def main() -> None:
    target, options = sys.argv[1], sys.argv[2:]
    corpus = HERE / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(SEEDS):
        (corpus / str(number)).write_bytes(seed)
    files_named = [option for option in options if not option.startswith("-")]
    atheris.Setup([sys.argv[0], *options, *([] if files_named else [str(corpus)])], TARGETS[target])
    with console.silent():
        atheris.Fuzz()


if __name__ == "__main__":
    main()
