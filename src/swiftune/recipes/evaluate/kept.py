"""JSON Lines that are only ever appended to, each known by its ``key``: what is there need not be done again."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from swiftune.errors import OutputError


class Kept:
    """The lines of a file by key. Memory holds the keys alone.

    A last line that was torn when a process died is cut off.

    Raises:
        OutputError: the file cannot be read or written, or is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> dict[str, Any]:
        self._file.seek(self._places[key])
        value: dict[str, Any] = json.loads(self._file.readline())
        return value

    def add(self, key: str, **values: Any) -> None:
        """Writes a line, which is in the file when this returns."""
        line = json.dumps({"key": key, **values}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._places[key] = self._file.seek(0, 2)
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error

    def _read(self) -> None:
        place = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self._file.truncate(place)
                break
            try:
                self._places[json.loads(line)["key"]] = place
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"{self.path}:{number} is no line that swift eval wrote.", "Remove the file, or the line."
                ) from error
            place += len(line)

    def _unusable(self, error: OSError) -> OutputError:
        return OutputError(
            f"--eval_output_dir: {self.path} cannot be written: {error.strerror or error}.",
            "What is in it stays; the same command goes on from there.",
        )
