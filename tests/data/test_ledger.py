from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.data.ledger import BALANCED, COPY, SHORT, Ledger
from swiftune.errors import DataError, OutputError
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


# Too many.


def ledger_of(used: int, bad: int, withdrawn: int = 0, left_out: int = 0, **options) -> Ledger:
    """A ledger of rows from two stages; rows are numbered as they come."""
    ledger = Ledger(**options)
    ledger.use(used + withdrawn)
    ledger.left_out = left_out
    for line in range(1, bad + 1):
        ledger.set_aside(Place("a.jsonl", line), "empty answer", f"message {line}")
    for line in range(bad + 1, bad + withdrawn + 1):
        ledger.withdraw(Place("a.jsonl", line), "longer than max_length", "3000 tokens")
    return ledger


@given(
    used=st.integers(0, 200),
    bad=st.integers(0, 30),
    withdrawn=st.integers(0, 30),
    limit=st.integers(0, 60) | st.decimals(0, 100, places=1),
)
def test_more_than_the_limit_stops_and_no_fewer(used: int, bad: int, withdrawn: int, limit) -> None:
    share = not isinstance(limit, int)
    ledger = ledger_of(used, bad, withdrawn, max_bad_rows=f"{limit}%" if share else str(limit))
    too_many = (bad + withdrawn) * 100 > limit * (used + bad + withdrawn) if share else bad + withdrawn > limit
    if too_many:
        with pytest.raises(DataError, match=f"--max_bad_rows {bad + withdrawn}\\)"):
            ledger.check()
    else:
        ledger.check()
    ledger_of(used, bad, withdrawn, max_bad_rows=str(bad + withdrawn)).check()  # as the message proposes


def test_what_is_left_out_dilutes_the_faults_of_the_file_and_not_those_of_the_rows_chosen() -> None:
    ledger_of(used=500, bad=28, left_out=51_474, max_bad_rows="5%").check()  # alpaca's empty answers, and #500
    with pytest.raises(DataError, match=r"^60 of 500 rows cannot be used\. --max_bad_rows is 5%:"):
        ledger_of(used=440, bad=28, withdrawn=60, left_out=51_474, max_bad_rows="5%").check()


def test_the_first_ten_are_shown_with_their_reasons_and_the_cure() -> None:
    with pytest.raises(DataError) as error:
        ledger_of(used=20, bad=9, withdrawn=4, max_bad_rows="5%").check()
    assert str(error.value).splitlines() == [
        "13 of 33 rows cannot be used. --max_bad_rows is 5%:",
        *(f"  a.jsonl:{line}: empty answer (message {line})" for line in range(1, 10)),
        "  a.jsonl:10: longer than max_length (3000 tokens)",
        "  and 3 more",
        "Mend them, or raise --max_bad_rows to train on the others (--max_bad_rows 13). "
        "Those that are too long fit a larger --max_length, or --truncation_strategy left or right.",
    ]


def test_strict_stops_at_the_first() -> None:
    ledger = Ledger(strict=True, max_bad_rows="100%")
    ledger.use(2)
    with pytest.raises(DataError, match=r"^a\.jsonl:2: longer than max_length \(3000 tokens\)\. With --strict true"):
        ledger.withdraw(Place("a.jsonl", 2), "longer than max_length", "3000 tokens")
    assert (ledger.read, ledger.used, ledger.aside) == (2, 1, 1)


@pytest.mark.parametrize(("ahead", "met", "of"), [(1, 51, "1,000"), (1000, 53, "1,053"), (3000, 158, "3,158")])
def test_a_stream_is_looked_at_row_by_row_with_what_it_may_hold_counted(ahead: int, met: int, of: str) -> None:
    with pytest.raises(DataError, match=f"^{met} of up to {of} rows cannot be used"):
        ledger_of(used=0, bad=999, max_bad_rows="5%", ahead=ahead)  # nothing but bad rows


def test_a_stream_of_few_bad_rows_goes_on_for_ever() -> None:
    ledger = Ledger(max_bad_rows="5%", ahead=1000)
    for line in range(100_000):
        if line % 20:
            ledger.use()
        else:
            ledger.set_aside(Place("a.jsonl", line), "empty answer")


def test_a_number_of_rows_is_the_limit_of_a_stream_from_the_first_on() -> None:
    with pytest.raises(DataError, match="^3 of up to 1,003 rows cannot be used"):
        ledger_of(used=0, bad=5, max_bad_rows="2", ahead=1000)


def test_rows_that_a_filter_leaves_out_are_counted_and_are_no_faults(tmp_path) -> None:
    ledger = Ledger(strict=True, max_bad_rows="0")
    ledger.use(10)
    for line, reason in enumerate((COPY, SHORT, BALANCED), 1):
        ledger.withdraw(Place("a.jsonl", line), reason)
    ledger.check()
    assert (ledger.read, ledger.used, ledger.aside, ledger.faulty, ledger.withdrawn) == (10, 7, 3, 0, 0)
    with pytest.raises(DataError):
        ledger.withdraw(Place("a.jsonl", 4), "empty answer")
    ledger.write(tmp_path / "aside.jsonl")
    assert len((tmp_path / "aside.jsonl").read_text().splitlines()) == 4


def test_too_many_rows_at_fault_are_told_without_those_left_out() -> None:
    ledger = Ledger(max_bad_rows="1")
    ledger.use(10)
    ledger.withdraw(Place("a.jsonl", 1), COPY)
    for line in (2, 3):
        ledger.set_aside(Place("a.jsonl", line), "empty answer")
    with pytest.raises(DataError, match="2 of 12 rows cannot be used") as caught:
        ledger.check()
    assert "a.jsonl:1" not in str(caught.value)
    assert "--max_bad_rows 2" in str(caught.value)


def test_rows_that_are_used_again_are_read_again() -> None:
    ledger = Ledger()
    ledger.use(4)
    ledger.repeat(2)
    assert ledger.counts == {"read": 6, "used": 6, "set_aside": {}, "repeated": 2}
    assert ledger.summary() == "6 rows read = 6 used (2 of them again) + 0 set aside"
