"""Where reading is in a data set, so that it can go on from there without a look at the rows before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Spot:
    """The place behind the last row read. Readers go on from it and move it along; ``asdict`` of it is JSON."""

    file: int = 0
    """Which of the data set's files."""
    byte: int = 0
    """Unpacked bytes of the file that are read; 0 where it is parquet or one JSON object."""
    line: int = 1
    """The line at which ``byte`` is, or the number of the row that comes next."""
    column: int = 0
    """Bytes of that line that are read."""
    parsed: bool = False
    """Whether the file has had a row."""
    fault: str = ""
    """The first line of the file that is not JSON, if there is one: where, and why."""

    def next_file(self) -> None:
        """Goes to the start of the next file."""
        self.file += 1
        self.byte, self.line, self.column, self.parsed, self.fault = 0, 1, 0, False, ""
