"""Cut and remembered, or whole: the ids are the same."""

from __future__ import annotations

import functools
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from swiftune import hub
from swiftune.data import encode
from swiftune.data.encode import Encoder
from swiftune.data.render import Renderer
from tests.data import chats

CUT = ("smollm2", "qwen2", "qwen3", "llama3", "gemma", "mistral_v1", "mistral_v3")


@functools.cache
def encoder(kind: str) -> Encoder:
    if kind == "builtin":
        from transformers import AutoTokenizer

        return Renderer(AutoTokenizer.from_pretrained(hub.find_model(None)))._encode
    return Renderer(chats.tokenizer(kind))._encode


def ids(own: Encoder, texts: list[str]) -> list[list[int]]:
    return [found.tolist() for found in own(texts)]


@pytest.mark.parametrize("kind", [*CUT, "builtin"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_ids_are_those_of_the_whole(kind: str, data: st.DataObject) -> None:
    own = encoder(kind)
    added = sorted(own.tokenizer.get_added_vocab())
    halves = [token[: len(token) // 2] for token in added] + [token[1:] for token in added]
    words = ["Hello", " ", "  ", "\n", "\n\n", "\t", "'s", " 12", "3.", "é", "你好", "\u00a0", "<", "|>", "x_y", ""]
    part = st.sampled_from(added) | st.sampled_from(words) | st.sampled_from(halves) | st.text(max_size=8)
    texts = data.draw(st.lists(st.lists(part, max_size=12).map("".join), min_size=1, max_size=4))
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    assert ids(own, texts) == own.whole(texts)
    assert ids(own, texts) == own.whole(texts)  # from memory


def test_which_tokenizers_are_cut() -> None:
    for kind in (*CUT, "builtin"):
        own = encoder(kind)
        end = chats.KINDS[kind][1][0][-1] if kind != "builtin" else "<|im_end|>"
        assert own._pieces(f"a{end}\nb") == ["a", f"{end}\nb"], kind


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("x<|im", normalized=False),  # begins before <|im_end|> and reaches into it
        AddedToken("<|im_end|>>", normalized=False),
        AddedToken("<|im_end|>", special=True, normalized=False, lstrip=True),
        AddedToken("<|im_end|>", special=True, normalized=False, rstrip=True),
    ],
)
def test_tokens_that_meddle_with_marks(token: AddedToken) -> None:
    tokenizer = chats.tokenizer("qwen2")
    tokenizer.backend_tokenizer.add_tokens([token])
    own = Encoder(tokenizer, ["<|im_start|>", "<|im_end|>"])
    assert "<|im_end|>" not in own.marks
    texts = ["a <|im_end|> b", "ax<|im_end|>>word", "<|im_end|>word", "word<|im_end|>"]
    assert ids(own, texts) == own.whole(texts)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_KEPT", 1 << 15)
    own = Encoder(chats.tokenizer("qwen2"), ["<|im_start|>", "<|im_end|>"])
    texts = [f"<|im_start|>user\nNumber {n}<|im_end|>" for n in range(1000)]
    for start in range(0, 1000, 20):
        assert ids(own, texts[start : start + 20]) == own.whole(texts[start : start + 20])
        assert len(own._recent) + len(own._older) < 150
    assert "<|im_end|>" in own._recent | own._older  # asked for all the time


def test_what_is_remembered_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Encoder(chats.tokenizer("qwen2"), ["<|im_start|>", "<|im_end|>"])
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    first = ids(own, [text, text])
    asked: list[str] = []
    whole = own.whole

    def spy(texts: Any, **options: Any) -> Any:
        asked.extend(texts)
        return whole(texts, **options)

    monkeypatch.setattr(own, "whole", spy)
    assert ids(own, [f"{text}ho<|im_end|>"])[0][: len(first[0])] == first[0]
    assert asked == ["<|im_start|>assistant\nho"]


def test_a_copy_for_another_process_remembers_nothing() -> None:
    own = encoder("qwen2")
    own(["something<|im_end|>"])
    copy = pickle.loads(pickle.dumps(own))
    assert "something" not in copy._recent | copy._older
    assert ids(copy, ["something<|im_end|>"]) == ids(own, ["something<|im_end|>"])


def test_threads_may_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_KEPT", 1 << 14)
    own = Encoder(chats.tokenizer("qwen2"), ["<|im_start|>", "<|im_end|>"])
    rng = random.Random(0)
    jobs = [[f"<|im_start|>user\nNumber {rng.randrange(200)}<|im_end|>" for _ in range(40)] for _ in range(100)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda texts: ids(own, texts), jobs)) == [own.whole(texts) for texts in jobs]
