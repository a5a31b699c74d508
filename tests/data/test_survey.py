from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.data.languages import UNKNOWN, count_languages
from swiftune.data.survey import CLASSES, NONE, OTHERS, Lengths, Survey, classes, every
from swiftune.types import IGNORE, Place, Row, Sample

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


@given(LENGTHS, st.floats(0, 100))
def test_figures_are_those_of_numpy(lengths: list[int], percent: float) -> None:
    found = Lengths(Counter(lengths))
    assert (found.count, found.total, found.longest) == (len(lengths), sum(lengths), max(lengths))
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.percentile(percent) == pytest.approx(np.percentile(lengths, percent))


@given(LENGTHS, st.integers(1, 100))
def test_what_covers_a_share_is_the_least_that_does(lengths: list[int], percent: int) -> None:
    found = Lengths(Counter(lengths))
    enough = found.covering(percent)
    assert 100 * sum(length <= enough for length in lengths) >= percent * len(lengths)
    assert 100 * sum(length < enough for length in lengths) < percent * len(lengths)
    assert found.over(enough) == sum(length > enough for length in lengths)


@given(LENGTHS, st.integers(1, 40))
def test_every_row_is_in_one_bar(lengths: list[int], most: int) -> None:
    bars = Lengths(Counter(lengths)).bars(most)
    assert [sum(low <= length <= high for length in lengths) for low, high, _ in bars] == [rows for _, _, rows in bars]
    assert sum(rows for _, _, rows in bars) == len(lengths)
    assert len(bars) <= most + 3
    assert all(high + 1 == low for (_, high, _), (low, _, _) in itertools.pairwise(bars))
    assert bars[0][2] > 0


def test_nothing_has_figures_too() -> None:
    found = Lengths({})
    assert (found.mean, found.longest, found.percentile(95), found.covering(95), found.bars()) == (0, 0, 0, 0, [])


def sample(answer: str, channel: str | None = None) -> Sample:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]
    return Sample(messages, Place("a", 1), channel=channel)  # type: ignore[arg-type]


def row(learned: int) -> Row:
    ids_T = np.arange(learned + 3, dtype=np.int32)
    labels_T = np.where(ids_T >= 3, ids_T, IGNORE).astype(np.int32)
    return Row(ids_T, labels_T, (len(ids_T),))


def test_answers_that_come_again() -> None:
    survey = Survey()
    for answer in ("yes", "no", " yes\n", "perhaps", "no", "yes"):
        survey.use(sample(answer), row(4))
    assert survey.repeated(5) == (5, [(0, 3), (1, 2)])
    assert survey.repeated(1) == (5, [(0, 3)])
    assert (survey.rows, survey.tokens, dict(survey.learned), dict(survey.turns)) == (6, 42, {4: 6}, {1: 6})
    assert Survey().repeated(5) == (0, [])


def test_a_column_of_many_values_is_counted_in_bounded_memory() -> None:
    survey = Survey()
    for number in range(CLASSES + 10):
        survey.use(sample("x", channel=str(number)), row(1))
    assert len(survey.channels) == CLASSES + 1
    assert survey.channels[OTHERS] == 10


def test_classes_are_told_where_there_is_one() -> None:
    assert classes(Counter({None: 5})) == {}
    assert list(classes(Counter({None: 5, "a": 1, "b": 7})).items()) == [("b", 7), (NONE, 5), ("a", 1)]


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_rows_at_even_distances(count: int, most: int) -> None:
    places = every(count, most)
    assert len(places) <= most
    assert not count or (places[0] == 0 and places[-1] < count)


def test_languages_are_told_apart_and_what_is_none_is_said() -> None:
    texts = [
        "Vaccines train the immune system to recognise a germ before it meets the real one.",
        "疫苗让免疫系统提前认识病菌，这样真正遇到时就能更快作出反应。",
        "Los gatos duermen muchas horas al día porque conservan la energía para cazar.",
        "Die Brücke wurde im letzten Jahr gesperrt, weil ihre Pfeiler saniert werden müssen.",
        "桜の花は春に咲き、人々は公園で花見を楽しみます。",
        "3 + 4 = 7",
        "",
    ]
    assert count_languages(texts) == {"en": 1, "zh": 1, "es": 1, "de": 1, "ja": 1, UNKNOWN: 2}
