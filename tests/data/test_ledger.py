from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.data.ledger import Ledger
from swiftune.errors import OutputError
from swiftune.types import Place

STEPS = st.lists(st.tuples(st.sampled_from(["use", "aside", "withdraw"]), st.text(max_size=3), st.text(max_size=5)))


@given(STEPS)
def test_read_is_used_plus_set_aside_and_every_fault_is_listed(tmp_path_factory, steps) -> None:
    ledger = Ledger()
    expected = []
    for number, (what, reason, detail) in enumerate(steps):
        place = Place("a.json", number)
        if what == "use" or (what == "withdraw" and not ledger.used):
            ledger.use()
        elif what == "aside":
            ledger.set_aside(place, reason, detail)
            expected.append({"file": "a.json", "line": number, "reason": reason, "detail": detail})
        else:
            ledger.withdraw(place, reason, detail)
            expected.append({"file": "a.json", "line": number, "reason": reason, "detail": detail})
        assert ledger.read == ledger.used + ledger.aside
    path = tmp_path_factory.mktemp("run") / "set_aside.jsonl"
    ledger.write(path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] == expected
    assert sum(ledger.reasons.values()) == len(expected)


def test_summary_groups_by_reason_with_first_places() -> None:
    ledger = Ledger()
    ledger.use(1000)
    for line in range(1, 6):
        ledger.set_aside(Place("a.jsonl", line), "empty answer", f"message {line}")
    ledger.withdraw(Place("b.jsonl", 7), "longer than max_length", "3000 tokens")
    assert ledger.summary().splitlines() == [
        "1,005 rows read = 999 used + 6 set aside",
        "  5 × empty answer: a.jsonl:1 (message 1), a.jsonl:2 (message 2), a.jsonl:3 (message 3), …",
        "  1 × longer than max_length: b.jsonl:7 (3000 tokens)",
    ]


def test_write_twice_and_after_many_rows(tmp_path) -> None:
    ledger = Ledger()
    for line in range(20_000):
        ledger.set_aside(Place("a.jsonl", line), "empty answer", "x" * 50)
        if line == 100:
            ledger.write(tmp_path / "early.jsonl")
    ledger.write(tmp_path / "late.jsonl")
    assert len((tmp_path / "early.jsonl").read_text().splitlines()) == 101
    assert len((tmp_path / "late.jsonl").read_text().splitlines()) == 20_000


def test_half_a_surrogate_pair_does_no_harm(tmp_path) -> None:
    ledger = Ledger()
    ledger.set_aside(Place("a.jsonl", 1), "unknown role", "\ud800")
    ledger.write(tmp_path / "set_aside.jsonl")
    assert json.loads((tmp_path / "set_aside.jsonl").read_text())["reason"] == "unknown role"


def test_a_folder_that_is_not_there(tmp_path) -> None:
    with pytest.raises(OutputError, match=r"set_aside\.jsonl"):
        Ledger().write(tmp_path / "no" / "set_aside.jsonl")
