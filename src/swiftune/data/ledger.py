"""What became of every row: used, or set aside with the reason. ``read == used + set aside``, always.

A row counts where it was drawn for the run: a row that ``#N`` repeats counts each time, a row that ``#N`` leaves
out is not counted at all. Rows at fault are always counted and listed.
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swiftune.errors import OutputError
from swiftune.types import Place, SetAside

EXAMPLES = 3
"""Places kept in memory for each reason; the rest goes to a temporary file."""


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

    Attributes:
        used: rows in use.
        reasons: rows set aside, counted by reason, in the order met.
        examples: the first few rows of each reason.
    """

    def __init__(self) -> None:
        self.used = 0
        self.reasons: dict[str, int] = {}
        self.examples: dict[str, list[SetAside]] = {}
        self._lines = tempfile.SpooledTemporaryFile(max_size=1 << 20, mode="w+", encoding="utf-8")  # noqa: SIM115
        weakref.finalize(self, self._lines.close)

    @property
    def aside(self) -> int:
        """Rows set aside."""
        return sum(self.reasons.values())

    @property
    def read(self) -> int:
        """Rows read: those used and those set aside."""
        return self.used + self.aside

    def use(self, rows: int = 1) -> None:
        """Counts rows that are read and used."""
        self.used += rows

    def set_aside(self, place: Place, reason: str, detail: str = "") -> None:
        """Counts a row that is read and not used."""
        entry = SetAside(place, reason, detail)
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append(entry)
        self._lines.write(_line(entry))

    def withdraw(self, place: Place, reason: str, detail: str = "") -> None:
        """Sets aside a row that was counted as used: a later stage (rendering, ``max_length``) cannot use it."""
        assert self.used > 0, "a row is withdrawn that was never used"
        self.used -= 1
        self.set_aside(place, reason, detail)

    def state(self) -> dict[str, Any]:
        """The whole account, as JSON has it."""
        return {
            "used": self.used,
            "reasons": dict(self.reasons),
            "examples": {reason: [asdict(entry) for entry in shown] for reason, shown in self.examples.items()},
            "lines": "".join(self._blocks()),
        }

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Takes the account over from ``state``."""
        self.used, self.reasons = state["used"], dict(state["reasons"])
        self.examples = {reason: list(map(entry_of, shown)) for reason, shown in state["examples"].items()}
        self._lines.seek(0)
        self._lines.truncate()
        self._lines.write(state["lines"])

    def summary(self) -> str:
        """The account for the terminal: one line of totals, then a line for each reason with its first places."""
        lines = [f"{self.read:,} rows read = {self.used:,} used + {self.aside:,} set aside"]
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


def entry_of(raw: Mapping[str, Any]) -> SetAside:
    """What ``asdict`` has made JSON of."""
    return SetAside(Place(**raw["place"]), raw["reason"], raw["detail"])


def _line(entry: SetAside) -> str:
    place = {"file": entry.place.file, "line": entry.place.line}
    text = json.dumps({**place, "reason": entry.reason, "detail": entry.detail}, ensure_ascii=False)
    # A file name, or a value quoted in a detail, may hold half a surrogate pair.
    return text.encode("utf-8", "backslashreplace").decode() + "\n"
