"""The elements of a JSON list, one at a time, out of a file that need not fit in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from swiftune.data.spot import Spot

_CHUNK = 1 << 20
_BLANK = re.compile(r"[ \t\n\r]*")
_NEAR_END = 16
"""An error this close to the end of what is read so far may be an element cut in two (``tru``, ``\\u00``)."""


class BrokenJson(Exception):  # noqa: N818 - what the file is, not what we did
    """The text is no JSON list from ``line`` on."""

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


class JsonText:
    """A window on the text, moved along as elements are taken.

    Args:
        file: UTF-8, at the byte of ``spot``.
        not_utf8: makes the error to raise from the line, the byte's index in it, and the byte.
        spot: before the list, or behind an element of it; it is moved along.
    """

    def __init__(
        self, file: IO[bytes], not_utf8: Callable[[int, int, int], Exception], spot: Spot | None = None
    ) -> None:
        self._file = file
        self._not_utf8 = not_utf8
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._window = ""
        self._at = 0
        self._spot = spot or Spot()
        self._ended = False

    def elements(self) -> Iterator[tuple[int, Any]]:
        """Each element with the line it starts on.

        Raises:
            BrokenJson: where the list is broken.
        """
        if self._spot.parsed:
            separator = self._take(",]")
        else:
            self._take("[")
            separator = self._take("]") if self._peek() == "]" else ","
        while separator == ",":
            self._peek()
            line, value = self._spot.line, self._element()
            self._spot.parsed = True
            yield line, value
            separator = self._take(",]")
        if self._peek():
            raise BrokenJson(self._spot.line, "something follows the closing ]")

    def _peek(self) -> str:
        """Skips blanks; the next character, or nothing at the end."""
        while True:
            blank = _BLANK.match(self._window, self._at)
            assert blank, "it matches nothing, too"
            self._move(blank.end())
            if self._at < len(self._window):
                return self._window[self._at]
            if not self._more():
                return ""

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            raise BrokenJson(self._spot.line, f"{' or '.join(wanted)} expected, {found or 'the end of the file'} found")
        self._move(self._at + 1)
        return found

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._parse(self._window, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._window) - _NEAR_END
                if cut and self._more():
                    continue
                raise BrokenJson(self._spot.line + self._window.count("\n", self._at, error.pos), error.msg) from None
            except (ValueError, RecursionError) as error:
                why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise BrokenJson(self._spot.line, why) from None
            if isinstance(value, int | float) and end > len(self._window) - _NEAR_END and self._more():
                continue  # a number may go on: 1.5 | e+16
            self._move(end)
            return value

    def _move(self, to: int) -> None:
        if to == self._at:
            return
        moved, self._at = self._window[self._at : to].encode(), to
        lines, spot = moved.count(b"\n"), self._spot
        spot.byte, spot.line = spot.byte + len(moved), spot.line + lines
        spot.column = len(moved) - 1 - moved.rfind(b"\n") if lines else spot.column + len(moved)

    def _more(self) -> bool:
        """Drops what is taken and reads at least as much as is left, so that a long element is not parsed too often."""
        if self._ended:
            return False
        self._window = self._window[self._at :]
        self._at = 0
        raw = self._file.read(max(_CHUNK, 2 * len(self._window)))
        self._ended = not raw
        try:
            self._window += self._decode(raw, self._ended)
        except UnicodeDecodeError as error:
            *whole_lines, last = (self._window.encode() + error.object[: error.start]).split(b"\n")
            at = len(last) + (0 if whole_lines else self._spot.column)
            raise self._not_utf8(self._spot.line + len(whole_lines), at, error.object[error.start]) from None
        return True
