"""How near texts are to their references: BLEU and ROUGE, for languages with and without spaces between words."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003134f]")
_WORD = re.compile(r"[^\W_]+")


def text_metrics(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE and BLEU of ``texts``, each in percent.

    Returns:
        ``rouge-1``, ``rouge-2``, ``rouge-l``: the mean F-measure over the pairs (Lin 2004), as rouge-score counts it;
        ``bleu-4``: of the corpus (arXiv:1804.08771), as sacrebleu counts it. Empty without pairs.
    """
    if not texts:
        return {}
    return {**rouge(texts, references), "bleu-4": bleu(texts, references)}


def rouge(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F-measures in percent. Words are runs of letters and digits; Chinese is cut into words by jieba."""
    from rouge_score.rouge_scorer import RougeScorer

    names = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeL"}
    scorer = RougeScorer(list(names.values()), tokenizer=_Words())
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for name, kind in names.items()}


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """BLEU-4 in percent. Where the references hold Chinese, each of its characters counts as a word."""
    from sacrebleu.metrics import BLEU

    tokenizer = "zh" if any(map(is_chinese, references)) else "13a"
    return float(BLEU(tokenize=tokenizer).corpus_score(list(texts), [list(references)]).score)


def bleu_counts(text: str, reference: str, *, chinese: bool) -> list[float]:
    """What one pair adds to the BLEU of a corpus: matches of orders 1 to 4, n-grams of orders 1 to 4, both lengths."""
    from sacrebleu.metrics import BLEU

    score = BLEU(tokenize="zh" if chinese else "13a").corpus_score([text], [[reference]])
    return [float(number) for number in (*score.counts, *score.totals, score.sys_len, score.ref_len)]


def bleu_from(counts: Sequence[float]) -> float:
    """BLEU-4 in percent, from the sums of ``bleu_counts`` over a corpus."""
    from sacrebleu.metrics import BLEU

    whole = [int(count) for count in counts]
    score = BLEU.compute_bleu(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp", smooth_value=None)
    return float(score.score)


def is_chinese(text: str) -> bool:
    """Whether there is a Chinese character in it."""
    return _CHINESE.search(text) is not None


class _Words:
    """What rouge-score takes for a tokenizer; its own drops all but ASCII."""

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return [part for word in words for part in (_jieba().lcut(word) if _CHINESE.search(word) else [word])]


@functools.cache
def _jieba() -> Any:
    import logging
    import warnings

    from swiftune.runtime.paths import cache_dir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for pkg_resources, which warns of its own end
        import jieba
    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    # Its dictionary is kept in a folder of the user's: by default it trusts a file of a known name in /tmp.
    folder = cache_dir() / "jieba"
    folder.mkdir(parents=True, exist_ok=True)
    words.tmp_dir = str(folder)
    return words
