"""Intervals against hand arithmetic, published figures, and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swiftune.tasks.statistics import interval, mean, paired_interval, pass_at_k, wilson


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # Newcombe 1998, table I, method 3 (Wilson's score without continuity correction)
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_limits(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_a_share_gets_wilsons_interval_and_a_mean_the_bootstraps() -> None:
    assert interval(column(*[0.0] * 20), mean, seed=1) == pytest.approx((0, 16.11), abs=0.01)
    assert interval(column(30, 30, 30), mean, seed=1) == (30, 30)


def test_two_questions_by_hand() -> None:
    # Of the four equally likely draws of two questions, the difference is 0 in one, 50 in two, 100 in one.
    assert paired_interval(column(0, 100), column(0, 0), mean, seed=1) == (0, 100)
    # The same questions are drawn for both: a constant gain is certain, however the questions differ.
    assert paired_interval(column(10, 60, 95), column(5, 55, 90), mean, seed=1) == pytest.approx((5, 5))


def test_four_questions_against_all_their_resamples() -> None:
    one, other = [10.0, 40.0, 70.0, 20.0], [0.0, 50.0, 30.0, 25.0]
    gains = np.subtract(one, other)
    every = [gains[list(draw)].mean() for draw in itertools.product(range(4), repeat=4)]
    wanted = np.percentile(every, (2.5, 97.5))
    assert paired_interval(column(*one), column(*other), mean, seed=3) == pytest.approx(tuple(wanted), abs=1.0)


def test_many_questions_against_the_normal_distribution() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(50, 10, 2000), draw.normal(45, 10, 2000)
    gain = one - other
    half = 1.96 * gain.std() / math.sqrt(2000)
    found = paired_interval(one[:, None], other[:, None], mean, seed=5)
    assert found == pytest.approx((gain.mean() - half, gain.mean() + half), abs=0.05)
    assert found == paired_interval(one[:, None], other[:, None], mean, seed=5)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_program(samples: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, samples)), data.draw(st.integers(1, samples))
    draws = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))
