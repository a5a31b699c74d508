"""Which languages rows are in, by py3langid: its model of 139 languages is part of the package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

LOOKED_AT = 1000
"""Characters of a text that are looked at."""
UNKNOWN = "not told"
_SURE = 0.5
"""Confidence from which on the likeliest language is believed."""

# Of the 139, those that many data sets are in: a short text is otherwise easily taken for a rare language.
COMMON = (
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he", "hi", "hr", "hu"),
    *("id", "it", "ja", "kk", "kn", "ko", "lt", "lv", "mk", "ml", "mr", "ms", "nl", "no", "pa", "pl", "pt", "ro", "ru"),
    *("sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh"),
)


def count_languages(texts: Iterable[str]) -> Counter[str]:
    """How many texts are in which language (ISO 639-1 code), ``UNKNOWN`` where that cannot be told."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_SURE)
    identifier.set_languages(set(COMMON) & set(identifier.labels))
    counts: Counter[str] = Counter()
    for text in texts:
        text = text[:LOOKED_AT]
        language = identifier.classify(text)[0] if any(map(str.isalpha, text)) else "und"
        counts[UNKNOWN if language == "und" else language] += 1
    return counts
