"""Text to token ids: what the tokenizer itself gives for the whole text, without encoding anything twice.

A fast tokenizer takes its added tokens out of a text first and encodes what is left between them piece by piece. So a
rendered conversation can be cut at the tokens that its template writes, and a piece seen before (the system prompt of
all rows, the earlier rounds of a conversation, a row that repeats) comes from memory. A tokenizer for which this does
not hold, as a trial shows, is given whole texts.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = np.ndarray[Any, np.dtype[np.int32]]

_KEPT = 16 << 20
"""Bytes of pieces that are remembered: some ten thousand rows of an instruction set."""
_ENTRY = 256
"""Bytes of a piece beside its characters and ids: the array, and its place in the dictionary."""
_AT_ONCE = 1 << 20
"""Characters that the tokenizer is given at a time, or one longer text: what it holds meanwhile is much more."""
_PROBES = ("Two words ", "Hello", " \n one,  two\n\n", "\n3.14  ", "你好 é", "'s", "_x")


class Encoder:
    """A tokenizer, and what it was last asked.

    Args:
        tokenizer: not to be changed afterwards.
        marks: added tokens that texts are cut at, where they may be.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: Iterable[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.marks = _separators(tokenizer, marks)
        self._recent: dict[str, Ids] = {}
        self._older: dict[str, Ids] = {}
        self._bytes = 0
        self._cut = re.compile(f"({'|'.join(map(re.escape, self.marks))})") if self.marks else None
        if self._cut and not self._is_true_to_the_whole():
            self._cut = None

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, nothing added: a template writes its BOS itself. Not to be written to."""
        cut = [self._pieces(text) for text in texts]
        ids = self._ids_of(dict.fromkeys(itertools.chain.from_iterable(cut)))
        return [ids[own[0]] if len(own) == 1 else _joined([ids[piece] for piece in own]) for own in cut]

    def whole(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """The ids of each text by the tokenizer, uncut."""
        if getattr(self.tokenizer, "backend_tokenizer", None) is None:
            encoded = self.tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False) if texts else {}
            return list(encoded.get("input_ids", []))
        # Straight to the tokenizer in Rust: it is the larger part of the time, and the wrapper adds half of it again.
        batch = self.backend().encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in batch]

    def backend(self) -> Any:
        """The tokenizer in Rust, without what a padded call may have left set on it."""
        backend = self.tokenizer.backend_tokenizer
        if backend.padding is not None:  # setting what is set already would disturb another thread's call
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.encode_special_tokens:
            backend.encode_special_tokens = False
        return backend

    def __reduce__(self) -> tuple[Any, ...]:  # another process remembers for itself
        return Encoder, (self.tokenizer, self.marks)

    def _pieces(self, text: str) -> list[str]:
        """The text, cut before every mark."""
        if self._cut is None:
            return [text]
        parts: list[str] = self._cut.split(text)  # text, mark, text, mark, ... text
        pieces = [mark + rest for mark, rest in zip(parts[1::2], parts[2::2], strict=True)]
        return [parts[0], *pieces] if parts[0] else pieces

    def _ids_of(self, pieces: Iterable[str]) -> dict[str, Ids]:
        known: dict[str, Ids] = {}
        missing = []
        for piece in pieces:
            ids = self._recent.get(piece)
            if ids is None:
                ids = self._older.get(piece)
                if ids is None:
                    missing.append(piece)
                    continue
                self._remember(piece, ids)
            known[piece] = ids
        for some in _runs(missing):
            for piece, new in zip(some, self.whole(some), strict=True):
                known[piece] = ids = np.array(new, dtype=np.int32)
                self._remember(piece, ids)
        return known

    def _remember(self, piece: str, ids: Ids) -> None:
        """In two generations: what was not asked for while a whole one filled up is forgotten."""
        self._recent[piece] = ids
        self._bytes += sys.getsizeof(piece) + ids.nbytes + _ENTRY
        if self._bytes > _KEPT // 2:
            self._older, self._recent, self._bytes = self._recent, {}, 0

    def _is_true_to_the_whole(self) -> bool:
        texts = [
            mark.join(probes) for mark in self.marks for probes in (_PROBES, _PROBES[::-1], ("", *_PROBES, "", ""))
        ]
        return all(ids.tolist() == whole for ids, whole in zip(self(texts), self.whole(texts), strict=True))


def _runs(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The same texts, ``_AT_ONCE`` characters at a time."""
    start, characters = 0, 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= _AT_ONCE or end == len(texts):
            yield texts[start:end]
            start, characters = end, 0


def _separators(tokenizer: PreTrainedTokenizerBase, marks: Iterable[str]) -> list[str]:
    """Those of the marks that split a text wherever they occur in it, whatever stands beside them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.normalized]
    if any(token.single_word for token in added):  # looks at its neighbours
        return []
    plain = {token.content for token in added if not (token.lstrip or token.rstrip)}
    found = sorted(mark for mark in set(marks) & plain if mark == mark.strip())
    # Of tokens that overlap, the leftmost and then the longest counts: none may begin before a mark and reach into it.
    heads = tuple(mark[:end] for mark in found for end in range(1, len(mark)))
    for token in added:
        others = [mark for mark in found if mark != token.content]
        if (heads and token.content.endswith(heads)) or any(mark in token.content for mark in others):
            return []
    return found


def _joined(pieces: list[Ids]) -> Ids:
    return np.concatenate(pieces) if pieces else np.empty(0, np.int32)
