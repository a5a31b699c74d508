"""From tokens to text that can be shown at once and never has to be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"
"""What a tokenizer puts where bytes do not make up a character (yet)."""


class TextWriter:
    """Takes the tokens of one answer and gives its text in pieces.

    Kept back are bytes that may become a character, and the end of the text while it may become a stop word.
    Special tokens leave no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._decode = _Decoder(tokenizer)
        self._cutter = StopCutter(stop)
        self.text = ""
        """All pieces given so far."""

    @property
    def stopped(self) -> bool:
        """A stop word was written; nothing more will come."""
        return self._cutter.stopped

    def take(self, token: int) -> str:
        """The text that is safe to show now that ``token`` was written."""
        return self._show(self._cutter.take(self._decode.take(token)))

    def end(self) -> str:
        """The text that was kept back, when no token follows."""
        return self._show(self._cutter.take(self._decode.end()) + self._cutter.end())

    def _show(self, piece: str) -> str:
        self.text += piece
        return piece


class StopCutter:
    """Lets text through up to the stop word that is completed first, however the text is cut into pieces."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [word for word in stop if word]
        self._kept = ""
        self.stopped = False

    def take(self, piece: str) -> str:
        """The text that cannot be part of a stop word any more."""
        if self.stopped:
            return ""
        self._kept += piece
        found = [(at + len(word), at) for word in self._stop if (at := self._kept.find(word)) >= 0]
        if found:
            self.stopped = True
            return self._kept[: min(found)[1]]
        keep = max((_overlap(self._kept, word) for word in self._stop), default=0)
        shown, self._kept = self._kept[: len(self._kept) - keep], self._kept[len(self._kept) - keep :]
        return shown

    def end(self) -> str:
        """What was kept back in vain."""
        return "" if self.stopped else self._kept


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that ``word`` begins with."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)


class _Decoder:
    """Decodes only the last few tokens at each step, together with those before them, since tokenizers render a
    token differently at the start of a text (SentencePiece drops its space there)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        """The tokens behind the last piece."""
        self._waiting: list[int] = []
        """The tokens after them, whose text has not been given."""

    def take(self, token: int) -> str:
        self._waiting.append(token)
        piece = self._piece()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._shown, self._waiting = self._waiting, []
        return piece

    def end(self) -> str:
        return self._piece() if self._waiting else ""

    def _piece(self) -> str:
        before = self._text(self._shown)
        return self._text(self._shown + self._waiting)[len(before) :]

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
