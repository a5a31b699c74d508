from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swiftune.data.ledger import Ledger
from swiftune.data.stream import SampleStream, stream_samples
from tests.data.test_load import numbered, write


def stream(*names: str, ledger: Ledger | None = None, **options) -> SampleStream:
    return stream_samples(names, Path, ledger=ledger or Ledger(), **options)


def take(samples: SampleStream, count: int) -> list[str]:
    return [sample.messages[-1]["content"] for sample in itertools.islice(samples, count)]


def test_without_a_buffer_the_order_is_that_of_the_files_again_and_again(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 3), write(tmp_path / "b.jsonl", [{"text": "raw"}])
    assert take(stream(a, b, buffer_size=1), 9) == ["a0", "a1", "a2", "raw", "a0", "a1", "a2", "raw", "a0"]


def test_every_epoch_has_every_row_once_in_its_own_order(tmp_path) -> None:
    name = numbered(tmp_path / "a.jsonl", 100)
    rows = take(stream(name, buffer_size=20), 200)
    assert sorted(rows[:100]) == sorted(rows[100:]) == sorted(f"a{i}" for i in range(100))
    assert rows[:100] != rows[100:]
    assert rows == take(stream(name, buffer_size=20), 200)
    assert rows != take(stream(name, buffer_size=20, seed=7), 200)


@given(stop=st.integers(0, 90), more=st.integers(0, 90), size=st.sampled_from([1, 7, 500]), mixed=st.booleans())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_going_on_from_a_state_gives_what_would_have_come(tmp_path, stop: int, more: int, size: int, mixed) -> None:
    names = numbered(tmp_path / "a.jsonl", 30), numbered(tmp_path / "b.jsonl", 11)
    options = {"buffer_size": size, "interleave_prob": [0.7, 0.3] if mixed else None}
    whole = take(stream(*names, **options), stop + more)
    first = stream(*names, **options)
    before = take(first, stop)
    second = stream(*names, **options)
    second.go_to(first.state())
    assert before + take(second, more) == whole


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("#4", ["a0", "a1", "a2", "a3"]),
        ("#99", [f"a{i}" for i in range(10)]),
        ("#30%", ["a0", "a3", "a6"]),
        ("#1%", ["a0"]),
        ("#200%", [f"a{i // 2}" for i in range(20)]),
    ],
)
def test_amounts(tmp_path, amount: str, expected: list[str]) -> None:
    name = numbered(tmp_path / "a.jsonl", 10)
    samples = stream(name + amount, buffer_size=1)
    assert take(samples, len(expected)) == expected
    assert take(samples, 1) == ["a0"], "the next epoch"


def test_interleaving(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 400), write(tmp_path / "b.jsonl", [{"text": "b"}] * 200)
    epoch: list[str] = []
    samples = stream(a, b, interleave_prob=[0.8, 0.2], buffer_size=1)
    for sample in samples:
        if samples.epoch:
            break
        epoch.append(sample.messages[-1]["content"][0])
    assert Counter(epoch)["a"] == 400
    assert 60 < Counter(epoch)["b"] < 140


def test_interleaving_to_the_last(tmp_path) -> None:
    a, b = numbered(tmp_path / "a.jsonl", 50), write(tmp_path / "b.jsonl", [{"text": "b"}])
    samples = stream(a, b, interleave_prob=[0.5, 0.5], buffer_size=1, stopping_strategy="all_exhausted")
    rows = Counter(
        sample.messages[-1]["content"] for sample in itertools.takewhile(lambda _: not samples.epoch, samples)
    )
    assert rows.pop("b") > 10
    assert len(rows) == 50
