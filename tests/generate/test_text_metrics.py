from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from swiftune.generate.text_metrics import bleu, rouge, text_metrics

ENGLISH = ["The quick brown fox jumps over the lazy dog.", "Paris is the capital of France."]
REFERENCES = ["The quick brown dog jumps on the log.", "The capital of France is Paris."]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWIFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_english_is_what_the_libraries_say() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    pairs = [scorer.score(reference, text) for text, reference in zip(ENGLISH, REFERENCES, strict=True)]
    expected = {
        name: 50 * (pairs[0][kind].fmeasure + pairs[1][kind].fmeasure)
        for name, kind in [("rouge-1", "rouge1"), ("rouge-2", "rouge2"), ("rouge-l", "rougeL")]
    }
    expected["bleu-4"] = sacrebleu.corpus_bleu(ENGLISH, [REFERENCES]).score
    assert text_metrics(ENGLISH, REFERENCES) == pytest.approx(expected)


@given(st.text(st.characters(max_codepoint=127, exclude_characters="_")), st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_those_of_rouge_score(text: str, reference: str) -> None:
    reference = reference.replace("_", " ")
    expected = RougeScorer(["rouge1"]).score(reference, text)["rouge1"].fmeasure
    assert rouge([text], [reference])["rouge-1"] == pytest.approx(100 * expected)


def test_by_hand() -> None:
    # of three words each two are shared: precision and recall 2/3; no pair of neighbours is; the longest common
    # subsequence is one word
    assert rouge(["a b c"], ["b a d"]) == pytest.approx({"rouge-1": 200 / 3, "rouge-2": 0, "rouge-l": 100 / 3})
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100)


def test_chinese_words() -> None:
    # 我/喜欢/北京 against 我/喜欢/上海
    scores = rouge(["我喜欢北京。"], ["我喜欢上海。"])
    assert scores == pytest.approx({"rouge-1": 200 / 3, "rouge-2": 50, "rouge-l": 200 / 3})
    assert rouge(["完全不同"], ["我喜欢上海。"])["rouge-1"] == 0
    pair = ["我们都很喜欢学习中文"], ["我们都喜欢学习中文吧"]
    assert bleu(*pair) == pytest.approx(sacrebleu.corpus_bleu(pair[0], [pair[1]], tokenize="zh").score)
    assert 0 < bleu(*pair) < 100


def test_words_with_accents_are_whole() -> None:
    assert rouge(["café"], ["caf"])["rouge-1"] == 0
    assert rouge(["Привет, мир"], ["привет мир!"])["rouge-1"] == pytest.approx(100)


def test_empty_texts() -> None:
    assert text_metrics([], []) == {}
    assert text_metrics([""], ["something"]) == {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0, "bleu-4": 0}


def test_import_takes_no_library_and_chinese_nothing_from_tmp(tmp_path: Path) -> None:
    code = (
        "import sys; from swiftune.generate.text_metrics import rouge\n"
        "assert not {'rouge_score', 'sacrebleu', 'jieba', 'torch'} & set(sys.modules)\n"
        "rouge(['我喜欢北京'], ['我'])"
    )
    (tmp_path / "tmp").mkdir()
    environment = {"SWIFTUNE_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list((tmp_path / "tmp").iterdir())
