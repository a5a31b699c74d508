"""What became of every row: used, or set aside with the reason. ``read == used + set aside``, always.

A row counts where it was drawn for the run: a row that ``#N`` repeats counts each time, a row that ``#N`` leaves
out is not counted at all. Rows at fault are always counted and listed.

The ledger also knows how many rows may be set aside, and refuses the data where there are more.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

from swiftune.errors import DataError, OutputError
from swiftune.types import Place, SetAside

EXAMPLES = 3
"""Places kept in memory for each reason; the rest goes to a temporary file."""
SHOWN = 10
"""Rows that are shown where there are too many."""
AT_FIRST = 1000
"""Rows that a stream is taken to have at least: a share of fewer says little."""

COPY = "a copy of another row"
NEAR_COPY = "nearly a copy of another row"
SHORT = "an answer of fewer tokens than --min_response_tokens"
BALANCED = "left out by --balance"
ASKED = frozenset({COPY, NEAR_COPY, SHORT, BALANCED})
"""Why rows are set aside that could be used: filters were asked for. They count, and are no faults."""


class RowFault(Exception):  # noqa: N818 - the fault is the row's
    """One row cannot be used. Whoever catches it tells the ledger.

    Args:
        reason: the kind of fault, the same words for every row that has it.
        detail: what is special about this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Ledger:
    """Counts rows, and remembers those set aside.

    Args:
        strict: ``--strict``: no row may be set aside.
        max_bad_rows: ``--max_bad_rows``: how many may be, as a number (``"20"``) or a share of the rows (``"5%"``).
        ahead: for a stream, the most rows that it holds ready, which are not counted yet. The limit then holds all
            the time, not only at ``check``.

    Attributes:
        used: rows in use.
        withdrawn: rows at fault that had been counted as used.
        repeated: how many of the used rows are there again, so that classes are of one size.
        left_out: usable rows that ``#N`` leaves out. They are not counted as read, but a share is one of them, too:
            the rows at fault are those of the whole file.
        reasons: rows set aside, counted by reason, in the order met.
        examples: the first few rows of each reason.
        first: the first few rows at fault.
    """

    def __init__(self, *, strict: bool = False, max_bad_rows: str = "100%", ahead: int | None = None) -> None:
        self.used = 0
        self.withdrawn = 0
        self.repeated = 0
        self.left_out = 0
        self.reasons: dict[str, int] = {}
        self.examples: dict[str, list[SetAside]] = {}
        self.first: list[SetAside] = []
        self._strict = strict
        self._max_bad_rows = max_bad_rows
        self._ahead = ahead
        self._lines = tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="utf-8")  # noqa: SIM115
        weakref.finalize(self, self._lines.close)

    @property
    def aside(self) -> int:
        """Rows set aside."""
        return sum(self.reasons.values())

    @property
    def faulty(self) -> int:
        """Rows set aside because they cannot be used."""
        return sum(count for reason, count in self.reasons.items() if reason not in ASKED)

    @property
    def read(self) -> int:
        """Rows read: those used and those set aside."""
        return self.used + self.aside

    @property
    def counts(self) -> dict[str, Any]:
        """The totals, as JSON has them."""
        again = {"repeated": self.repeated} if self.repeated else {}
        return {"read": self.read, "used": self.used, "set_aside": dict(self.reasons), **again}

    def use(self, rows: int = 1) -> None:
        """Counts rows that are read and used."""
        self.used += rows

    def set_aside(self, place: Place, reason: str, detail: str = "") -> None:
        """Counts a row that is read and not used.

        Raises:
            DataError: no row may be at fault; or, of a stream, no more rows.
        """
        entry = SetAside(place, reason, detail)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(entry)
        self._lines.write(_line(entry))
        if reason in ASKED:
            return
        if len(self.first) < SHOWN:
            self.first.append(entry)
        if self._strict:
            raise DataError(
                f"{_shown(entry)}. With --strict true every row has to be usable.",
                "Mend that row; or leave out --strict, and such rows are set aside.",
            )
        if self._ahead is not None:
            self.check()

    def withdraw(self, place: Place, reason: str, detail: str = "") -> None:
        """Sets aside a row that was counted as used: a later stage (rendering, ``max_length``) cannot use it."""
        assert self.used > 0, "a row is withdrawn that was never used"
        self.used -= 1
        self.withdrawn += reason not in ASKED
        self.set_aside(place, reason, detail)

    def repeat(self, rows: int) -> None:
        """Counts rows that are used once more than they were drawn."""
        self.used += rows
        self.repeated += rows

    def check(self) -> None:
        """Looks whether too many rows are at fault.

        Raises:
            DataError: there are more than ``max_bad_rows``.
        """
        rows = self.read + self.left_out
        if self._ahead is None:
            shares = [(self.faulty, rows), (self.withdrawn, self.used + self.withdrawn)]
        else:
            shares = [(self.faulty, max(AT_FIRST, rows + self._ahead))]
        most = self._max_bad_rows
        for bad, of in shares:
            if bad > (Fraction(most[:-1]) * of / 100 if most.endswith("%") else int(most)):
                raise self._too_many(bad, of)

    def _too_many(self, bad: int, of: int) -> DataError:
        stream = self._ahead is not None
        lines = [f"{bad:,} of {'up to ' * stream}{of:,} rows cannot be used. --max_bad_rows is {self._max_bad_rows}:"]
        lines += [f"  {_shown(entry)}" for entry in self.first]
        if self.faulty > len(self.first):
            lines.append(f"  and {self.faulty - len(self.first):,} more")
        cure = "Mend them, or raise --max_bad_rows to train on the others"
        cure += "." if stream else f" (--max_bad_rows {self.faulty})."
        if any("max_length" in reason for reason in self.reasons):
            cure += " Those that are too long fit a larger --max_length, or --truncation_strategy left or right."
        return DataError("\n".join(lines), cure)

    def state(self) -> dict[str, Any]:
        """The whole account, as JSON has it."""
        return {
            "used": self.used,
            "withdrawn": self.withdrawn,
            "first": [asdict(entry) for entry in self.first],
            "reasons": dict(self.reasons),
            "examples": {reason: [asdict(entry) for entry in shown] for reason, shown in self.examples.items()},
            "lines": "".join(self._blocks()),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Takes the account over from ``state``."""
        self.used, self.withdrawn, self.reasons = state["used"], state["withdrawn"], dict(state["reasons"])
        self.first = list(map(entry_of, state["first"]))
        self.examples = {reason: list(map(entry_of, shown)) for reason, shown in state["examples"].items()}
        self._lines.seek(0)
        self._lines.truncate()
        self._lines.write(state["lines"])

    def summary(self) -> str:
        """The account for the terminal: one line of totals, then a line for each reason with its first places."""
        again = f" ({self.repeated:,} of them again)" if self.repeated else ""
        lines = [f"{self.read:,} rows read = {self.used:,} used{again} + {self.aside:,} set aside"]
        for reason, count in sorted(self.reasons.items(), key=lambda item: -item[1]):
            shown, said = [], ""
            for entry in self.examples[reason]:  # a detail that repeats is told once
                shown.append(f"{entry.place}{f' ({entry.detail})' if entry.detail not in ('', said) else ''}")
                said = entry.detail
            lines.append(f"  {count:,} × {reason}: {', '.join(shown)}{', …' if count > EXAMPLES else ''}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Lists every row set aside, a JSON object a line: ``file``, ``line``, ``reason``, ``detail``.

        Raises:
            OutputError: the file could not be written.
        """
        try:
            with path.open("w", encoding="utf-8") as out:
                out.writelines(self._blocks())
        except OSError as error:
            raise OutputError(f"The list of rows set aside could not be written to {path}: {error.strerror}.") from None

    def _blocks(self) -> Iterator[str]:
        """All lines, in pieces."""
        self._lines.seek(0)
        try:
            while block := self._lines.read(1 << 20):
                yield block
        finally:
            self._lines.seek(0, 2)


def _shown(entry: SetAside) -> str:
    detail = entry.detail if len(entry.detail) <= 100 else entry.detail[:99] + "…"
    return f"{entry.place}: {entry.reason}{detail and f' ({detail})'}"


def entry_of(raw: Mapping[str, Any]) -> SetAside:
    """What ``asdict`` has made JSON of."""
    return SetAside(Place(**raw["place"]), raw["reason"], raw["detail"])


def _line(entry: SetAside) -> str:
    place = {"file": entry.place.file, "line": entry.place.line}
    text = json.dumps({**place, "reason": entry.reason, "detail": entry.detail}, ensure_ascii=False)
    # A file name, or a value quoted in a detail, may hold half a surrogate pair.
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
