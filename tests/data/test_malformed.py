"""Whatever a file holds, on the whole way from its bytes to rows of tokens: a mistake explained, or every row accounted
for, and by a stream just as by a store. ``--hypothesis-profile deep`` tries more of it."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from swiftune.data.ledger import Ledger
from swiftune.data.load import load_samples
from swiftune.data.render import Renderer
from swiftune.data.stream import stream_samples
from swiftune.data.token_stream import TokenStream
from swiftune.data.tokens import tokenize
from swiftune.errors import DataError, SwiftuneError
from tests import tiny

MAX_LENGTH = 40
"""So that some rows are too long."""


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(tiny.make_tokenizer("qwen2"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


# What stands in a row.

TEXTS = st.text(max_size=8) | st.sampled_from(
    [
        *(
            "",
            " ",
            "\n",
            "\0",
            "\ufeff",
            "\u2028",
            "\x1b[31m",
            "é",
            "e\u0301",
            "👩‍👩‍👧",
            "\ud800",
            "\udfff a",
            "NaN",
            "null",
        ),
        *("<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "{{NAME}}", "{% raw %}", "word " * 60),
        *("[", "[]", "{}", '[["a", "b"]]', "[" * 3000, '{"name": "f", "arguments": {}}', "{1: {2}}", "b'x'", "'" * 99),
    ]
)
NUMBERS = st.sampled_from(
    [0, -1, 1.5, 2**63, 10**400, -(10**4000), 1e308, float("nan"), float("inf"), float("-inf"), True, False, None]
)
ROLES = st.sampled_from(
    ["user", "assistant", "system", "tool", "tool_call", "function", "gpt", "human", "User", "bot", "", "narrator"]
)
NAMES = st.sampled_from(
    [
        *("messages", "conversations", "conversation", "instruction", "input", "output", "query", "response", "prompt"),
        *(
            "completion",
            "question",
            "answer",
            "chosen",
            "rejected",
            "text",
            "system",
            "history",
            "tools",
            "role",
            "from",
        ),
        *("content", "value", "tool_calls", "loss", "weight", "function", "name", "arguments", "images", "label", ""),
    ]
)


def deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


VALUES = st.recursive(
    TEXTS | NUMBERS | ROLES | st.sampled_from([deep(50), deep(300)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": TEXTS | VALUES},
        optional={"tool_calls": VALUES, "loss": VALUES, "name": VALUES, "reasoning_content": VALUES},
    ),
    max_size=4,
)
GOOD = st.builds(
    lambda question, answer: {"query": question, "response": answer},
    st.sampled_from(["Who are you?", "你是谁？", "What is the capital of France?"]),
    st.sampled_from(["I am a helpful assistant.", "Paris.", "word " * 60]),
)
ROWS = st.one_of(
    GOOD,
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"tools": VALUES, "system": VALUES}),
    st.dictionaries(NAMES, TEXTS, min_size=1, max_size=4),
    st.dictionaries(NAMES, VALUES, max_size=4),
    VALUES,
)


def lines_of(rows: list[Any], ascii_only: bool) -> list[bytes]:
    """JSON lines; what UTF-8 has no bytes for is written as an escape."""
    return [json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "backslashreplace") for row in rows]


@given(rows=st.lists(ROWS, min_size=1, max_size=6), ascii_only=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_row_of_json_lines_is_used_or_set_aside(tmp_path, renderer: Renderer, rows, ascii_only: bool) -> None:
    path = tmp_path / "rows.jsonl"
    good = [{"query": "Who are you?", "response": "Me."}]  # so that there is always one
    path.write_bytes(b"\n".join(lines_of(good + rows, ascii_only)))
    assert account(path, renderer).read == 1 + len(rows)


# What stands in a file.

ODD_LINES = st.sampled_from(
    [
        *(
            b"",
            b" ",
            b"\r",
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b"null",
            b"NaN",
            b'"',
            b"{}",
            b"[]",
            b"\xff",
            b"\xe4\xbd",
            b"\0",
        ),
        *(b"\xef\xbb\xbf", b'{"query": "a", "response": "b"},', b'{"query": "a" "response": "b"}', b"{'query': 'a'}"),
        *(b'{"query": "a", "query": "b", "response": NaN}', b"query,response", b'"a","b', b'a,"b"c', b"a,b,c", b"a;b"),
        *(b"1" * 5000, b'{"query": "\\ud800", "response": "\\udc00"}', b'{"query": "\\u12', b"[" * 2000, b"# comment"),
    ]
)


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """A file of one format or none, whole, cut short, or with bytes that are wrong."""
    rows = draw(st.lists(ROWS | GOOD, max_size=4))
    data = draw(st.sampled_from([_as_lines, _as_list, _as_object, _as_csv, _as_parquet]))(rows)
    if draw(st.booleans()):
        pieces = [*data.split(b"\n")]
        pieces.insert(draw(st.integers(0, len(pieces))), draw(ODD_LINES))
        data = draw(st.sampled_from([b"\n", b"\r\n", b"\r"])).join(pieces)
    data = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0"])) + data
    if draw(st.booleans()):
        return data
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=3)) + data[at + draw(st.integers(0, 3)) :]


def _as_lines(rows: list[Any]) -> bytes:
    return b"\n".join(lines_of(rows, True))


def _as_list(rows: list[Any]) -> bytes:
    return b"[" + b",\n".join(lines_of(rows, True)) + b"]"


def _as_object(rows: list[Any]) -> bytes:
    return b'{"data": [' + b",".join(lines_of(rows, True)) + b"],\n" + b'"version": 1}'


def _as_csv(rows: list[Any]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["query", "response"])
    writer.writerows(list(row.values()) if isinstance(row, dict) else [row] for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _as_parquet(rows: list[Any]) -> bytes:
    sink = io.BytesIO()
    texts = [{"query": repr(row)[:200], "response": "b"} for row in rows]
    pq.write_table(pa.Table.from_pylist(texts, pa.schema([("query", pa.string()), ("response", pa.binary())])), sink)
    return sink.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@given(
    data=contents(),
    ending=st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]),
    packing=st.sampled_from([*PACKERS, ""]),
    cut=st.none() | st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example(data=b"", ending=".csv", packing="", cut=None)
@example(data=b"", ending=".jsonl", packing=".zst", cut=3)
@example(data="query,response\na,b\n".encode("utf-16"), ending=".csv", packing="", cut=None)
def test_every_file_is_read_to_its_end_or_refused(
    tmp_path, renderer: Renderer, data: bytes, ending: str, packing: str, cut: int | None
) -> None:
    packed = PACKERS[packing](data)
    path = tmp_path / f"rows{ending}{packing}"
    path.write_bytes(packed if cut is None else packed[:-cut])
    account(path, renderer)


def account(path: Path, renderer: Renderer) -> Ledger:
    """Loads and tokenizes a file as a store and as a stream; both have to tell the same of it."""
    ledger, streamed = Ledger(), Ledger()
    refused = [refusal(lambda: store(path, renderer, ledger)), refusal(lambda: stream(path, renderer, streamed))]
    assert len({error is None for error in refused}) == 1, refused
    assert all(error is None or isinstance(error, DataError) for error in refused), refused
    assert all(str(error).encode() for error in refused)  # it can be shown
    if refused[0] is None:
        assert set(streamed.reasons) == set(ledger.reasons)
        assert listed(ledger, path.parent) == ledger.aside
        assert listed(streamed, path.parent) == streamed.aside
    return ledger


def refusal(work: Callable[[], None]) -> SwiftuneError | None:
    try:
        work()
    except SwiftuneError as error:
        return error
    return None


def store(path: Path, renderer: Renderer, ledger: Ledger) -> None:
    samples = load_samples([str(path)], Path, ledger=ledger)
    rows = tokenize(samples, renderer, max_length=MAX_LENGTH, ledger=ledger)
    assert ledger.used == len(list(rows)) > 0


def stream(path: Path, renderer: Renderer, ledger: Ledger) -> None:
    """A few epochs of it."""
    samples = stream_samples([str(path)], Path, ledger=ledger, buffer_size=1)
    assert len(TokenStream(samples, renderer, max_length=MAX_LENGTH).take(65)) == 65


def listed(ledger: Ledger, folder: Path) -> int:
    """Rows in ``set_aside.jsonl``, which has to agree with the counts."""
    ledger.write(folder / "set_aside.jsonl")
    lines = (folder / "set_aside.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert Counter(json.loads(line)["reason"] for line in lines).total() == sum(ledger.reasons.values())
    return len(lines)
