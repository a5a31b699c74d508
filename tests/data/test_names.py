from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.data.names import DatasetName
from swiftune.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.json", DatasetName("a.json")),
        ("org/set#500", DatasetName("org/set", count=500)),
        ("org/set:sub#10%", DatasetName("org/set", "sub", percent=Decimal(10))),
        ("org/set#0.5%", DatasetName("org/set", percent=Decimal("0.5"))),
        ("org/set:sub", DatasetName("org/set", "sub")),
        ("./rows.jsonl#1", DatasetName("./rows.jsonl", count=1)),
    ],
)
def test_parse(text: str, expected: DatasetName) -> None:
    assert DatasetName.parse(text) == expected


@pytest.mark.parametrize("amount", ["0", "-3", "abc", "0%", "-1%", "", "%", "1.5", "1e3", "5 %", "٣", "nan%"])
def test_an_amount_that_is_none_is_told_with_the_cure(amount: str) -> None:
    with pytest.raises(UsageError) as caught:
        DatasetName.parse(f"org/set#{amount}")
    assert repr(amount) in caught.value.what
    assert "org/set#500" in caught.value.cure


@pytest.mark.parametrize("text", ["", "#5", ":sub", "a:", " "])
def test_a_name_without_name_or_subset(text: str) -> None:
    with pytest.raises(UsageError):
        DatasetName.parse(text)


def test_a_path_that_exists_wins(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#5", "b:c", "d:e#6"):
        (tmp_path / name).touch()
        assert DatasetName.parse(name) == DatasetName(name)
    assert DatasetName.parse("b:c#7") == DatasetName("b:c", count=7)
    assert DatasetName.parse("a#5:sub#2%") == DatasetName("a#5", "sub", percent=Decimal(2))


@given(usable=st.integers(1, 10**6), percent=st.decimals("0.01", "300", places=2))
def test_percent_rounds_half_up_and_gives_at_least_one(usable: int, percent: Decimal) -> None:
    rows = DatasetName.parse(f"x#{percent}%").rows_of(usable)
    exact = usable * percent / 100
    assert rows >= 1
    assert rows == 1 or exact - Decimal("0.5") < rows <= exact + Decimal("0.5")


def test_halves_go_up() -> None:
    assert DatasetName.parse("x#50%").rows_of(5) == 3
    assert DatasetName.parse("x#10%").rows_of(25) == 3
