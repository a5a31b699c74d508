from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from swiftune.generate.text_writer import StopCutter, TextWriter
from tests import tiny

TOKENIZER = tiny.make_tokenizer()


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


def first_completed(text: str, stop: list[str]) -> str:
    """The definition: read character by character; the word that is complete first cuts the text."""
    for end in range(len(text) + 1):
        words = [word for word in stop if word and text[:end].endswith(word)]
        if words:
            return text[: end - max(map(len, words))]
    return text


@given(st.text("abc", max_size=20), st.lists(st.text("abc", max_size=4), max_size=3), st.lists(st.integers(0, 50)))
def test_cutter_is_the_definition_however_the_text_is_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    cutter, shown = StopCutter(stop), ""
    for piece in pieces_of(text, cuts):
        shown += cutter.take(piece)
        assert first_completed(text, stop).startswith(shown)  # never a part of a stop word
    assert shown + cutter.end() == first_completed(text, stop)
    assert cutter.stopped == any(word and word in text for word in stop)


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_pieces_are_the_text_whatever_the_tokens(ids: list[int]) -> None:
    writer = TextWriter(TOKENIZER)
    pieces = [writer.take(token) for token in ids]
    pieces.append(writer.end())
    assert "".join(pieces) == writer.text == TOKENIZER.decode(ids, skip_special_tokens=True)


@given(st.text(max_size=20))
def test_no_piece_shows_half_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text.replace("\ufffd", ""), add_special_tokens=False)
    writer = TextWriter(TOKENIZER)
    shown = [writer.take(token) for token in ids]
    assert "\ufffd" not in "".join(shown)
    assert "".join(shown) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_multibyte_characters_come_whole() -> None:
    text = "好 👩‍🚀 é 龘!"
    ids = TOKENIZER.encode(text)
    assert len(ids) > len(text)  # several tokens to a character
    writer = TextWriter(TOKENIZER)
    assert [piece for token in ids if (piece := writer.take(token))] == [
        "好",
        " ",
        "👩",
        "\u200d",
        "🚀",
        " ",
        "é",
        " ",
        "龘",
        "!",
    ]


def test_stop_word_over_several_tokens() -> None:
    ids = TOKENIZER.encode("The answer is 4.\n\nQuestion: what else")
    writer = TextWriter(TOKENIZER, ("\n\nQuestion:",))
    shown = ""
    for token in ids:
        shown += writer.take(token)
        assert "\n" not in shown
    assert shown + writer.end() == "The answer is 4."
    assert writer.stopped


def test_what_only_looked_like_a_stop_word_is_shown_at_the_end() -> None:
    writer = TextWriter(TOKENIZER, ("</s>",))
    for token in TOKENIZER.encode("1 </"):
        writer.take(token)
    assert writer.text == "1 "
    assert writer.end() == "</"
    assert writer.text == "1 </"


def test_metaspace_tokenizer_keeps_its_spaces() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"▁Hello": 0, "▁my": 1, "▁": 2, "<0xE4>": 3, "<0xBD>": 4, "<0xA0>": 5, "<unk>": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    ids = [0, 1, 2, 3, 4, 5, 3, 4, 5, 1]
    writer = TextWriter(fast)
    assert [writer.take(token) for token in ids] == ["Hello", " my", " ", "", "", "你", "", "", "你", " my"]
    assert writer.text == fast.decode(ids)
