"""The built-in self-cognition set, and the questions kept out of it to try a trained model on."""

from __future__ import annotations

import json
import re
import unicodedata
from importlib.resources import files
from pathlib import Path

from swiftune.data.identity import Identity
from swiftune.data.ledger import Ledger
from swiftune.data.load import load_samples

BUILTIN = Path(str(files("swiftune"))) / "data" / "builtin" / "self-cognition"
UNSEEN = Path(__file__).parents[2] / "examples" / "identity_questions.json"
ROWS = [json.loads(line) for tag in ("en", "zh") for line in (BUILTIN / f"{tag}.jsonl").read_text("utf-8").splitlines()]


def plain(question: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", question).lower()).strip()


def test_there_are_enough_rows_of_each_language() -> None:
    assert all(sorted(row) == ["query", "response", "tag"] for row in ROWS)
    for tag in ("en", "zh"):
        questions = {plain(row["query"]) for row in ROWS if row["tag"] == tag}
        assert len(questions) >= 100


def test_the_tag_is_the_language() -> None:
    for row in ROWS:
        assert (row["tag"] == "zh") == bool(re.search("[\u4e00-\u9fff]", row["query"] + row["response"])), row


def test_every_answer_says_who_it_is() -> None:
    for row in ROWS:
        assert "{{NAME}}" in row["response"] or "{{AUTHOR}}" in row["response"], row
        assert not re.search(r"\{\{(?!NAME\}\}|AUTHOR\}\})", row["response"]), row
        assert "{{" not in row["query"]


def test_the_unseen_questions_are_unseen() -> None:
    unseen = [plain(question) for question in json.loads(UNSEEN.read_text(encoding="utf-8"))]
    assert len(set(unseen)) == 10
    assert not set(unseen) & {plain(row["query"]) for row in ROWS}


def test_every_row_is_filled_and_used(tmp_path) -> None:
    ledger = Ledger()
    who = Identity.of(["小鸥", "Gull"], ["港口", "Harbour"])
    store = load_samples(
        ["swift/self-cognition"], lambda _: BUILTIN, ledger=ledger, identity=who, cache_dir=tmp_path / "cache"
    )
    assert (ledger.used, ledger.aside) == (len(ROWS), 0)
    for row, sample in zip(ROWS, store, strict=True):
        said = sample.messages[-1]["content"]
        assert "{{" not in said
        assert re.search("小鸥|港口" if row["tag"] == "zh" else "Gull|Harbour", said)
