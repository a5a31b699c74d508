from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftune.data.duplicates import ALIKE, find_copies, shingles
from swiftune.types import Place, Sample

WORDS = [f"word{number}" for number in range(400)]


def row(question: str, answer: str, line: int = 1, system: str = "") -> Sample:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return Sample(messages, Place("rows.jsonl", line))  # type: ignore[arg-type]


def text(start: int, words: int = 50) -> str:
    """Words of which no two are the same, so that their runs of three are as many as they are, but for two."""
    return " ".join(WORDS[start : start + words])


def jaccard(a: Sample, b: Sample) -> float:
    ours, theirs = shingles(a), shingles(b)
    return len(ours & theirs) / len(ours | theirs)


def test_exact_copies_lead_to_the_first_of_them() -> None:
    samples = [row("a", "b"), row("a", "c"), row("a", "b", 9), row("d", "b"), row("a", "c"), row("a", "b")]
    copies = find_copies(samples, near=False)
    assert copies.of_N.tolist() == [-1, -1, 0, -1, 1, 0]
    assert not copies.near_N.any()


@pytest.mark.parametrize("near", [False, True])
def test_no_rows_have_no_copies(near: bool) -> None:
    assert find_copies([], near=near).of_N.tolist() == []
    assert find_copies([row("a", "b")], near=near).of_N.tolist() == [-1]
    assert find_copies([], [row("a", "b"), row("a", "b")], near=near).of_N.tolist() == []


def test_another_system_prompt_makes_a_near_copy() -> None:
    samples = [row("a", "b", system="Be brief."), row("a", "b", system="Be kind.")]
    assert find_copies(samples, near=False).of_N.tolist() == [-1, -1]
    copies = find_copies(samples, near=True)
    assert (copies.of_N.tolist(), copies.near_N.tolist()) == ([-1, 0], [False, True])


def test_four_fifths_in_common_is_near_and_less_is_not() -> None:
    """Of 50 words in a row, 48 runs; the last n words others: 48 - n runs in common of 48 + n."""
    first = row(text(0, 10), text(10, 40))
    for changed, common, together in ((5, 43, 53), (6, 42, 54)):
        other = row(text(0, 10), f"{text(10, 40 - changed)} {text(300, changed)}")
        assert jaccard(first, other) == common / together
        found = find_copies([first, other], near=True)
        assert found.of_N.tolist() == [-1, 0 if common / together >= ALIKE else -1]


def test_case_and_signs_do_not_count_and_every_chinese_character_is_a_word() -> None:
    assert find_copies([row("Who are YOU?", "I!"), row("who, are you", "i")], near=True).of_N.tolist() == [-1, 0]
    assert shingles(row("你是谁", "我")) == {"你 是 谁", "是 谁 我"}
    assert find_copies([row("🙂", "🙂"), row("🙃", "🙃")], near=True).of_N.tolist() == [-1, -1], "signs only"


def test_a_copy_of_a_copy_that_resembles_no_kept_row_is_kept() -> None:
    chain = [row("x", f"{text(5 * step, 60)}") for step in range(3)]
    assert jaccard(chain[0], chain[1]) >= ALIKE <= jaccard(chain[1], chain[2])
    assert jaccard(chain[0], chain[2]) < ALIKE
    assert find_copies(chain, near=True).of_N.tolist() == [-1, 0, -1]


def test_rows_for_evaluation_come_first_and_are_never_copies() -> None:
    evaluation = [row("a", "b"), row("a", "b"), row("q", text(0))]
    samples = [row("c", "d"), row("a", "b"), row("q", f"{text(0, 49)} more"), row("c", "d")]
    copies = find_copies(samples, evaluation, near=True)
    assert copies.evaluation == 3
    assert copies.of_N.tolist() == [-1, 0, 2, 3]
    assert copies.near_N.tolist() == [False, False, True, False]


def test_planted_near_copies_are_found_among_many_rows() -> None:
    rng = np.random.default_rng(0)
    samples = [row("q", " ".join(rng.choice(WORDS, 60))) for _ in range(1000)]
    planted = rng.choice(1000, 100, replace=False)
    for index in planted:
        words = samples[index].messages[1]["content"].split()
        words[int(rng.integers(len(words)))] = "changed"
        samples.append(row("q", " ".join(words)))
    copies = find_copies(samples, near=True)
    assert (copies.of_N[:1000] == -1).all()
    assert (copies.of_N[1000:] == planted).mean() >= 0.99  # at a similarity of 0.9 one of 5,000 is missed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=8), st.lists(st.text("ab ", max_size=12), max_size=4))
def test_what_is_reported_is_so(texts: list[str], held: list[str]) -> None:
    evaluation = [row("q", answer) for answer in held]
    samples = [row("q", answer) for answer in texts]
    copies = find_copies(samples, evaluation, near=True)
    everything = [*evaluation, *samples]
    kept = {*range(len(held)), *(len(held) + i for i, of in enumerate(copies.of_N) if of < 0)}
    for index, (of, near) in enumerate(zip(copies.of_N.tolist(), copies.near_N.tolist(), strict=True), len(held)):
        assert of in kept or of == -1
        if of >= 0:
            assert of < index
            assert (everything[of] == everything[index]) is not near
            assert jaccard(everything[of], everything[index]) >= ALIKE
    for a, b in itertools.combinations(sorted(kept - set(range(len(held)))), 2):
        assert everything[a] != everything[b]
