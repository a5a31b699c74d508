"""``{{NAME}}`` and ``{{AUTHOR}}`` in self-cognition sets, filled from ``--model_name`` and ``--model_author``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from swiftune.runtime.console import notice

_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the model shall say it is: (Chinese, English) each. None: not said, so the default is taken, and told."""

    name: tuple[str, str] | None = None
    author: tuple[str, str] | None = None

    @classmethod
    def of(cls, name: Sequence[str] | None, author: Sequence[str] | None) -> Identity:
        """From the flags' one or two values each: a single value is taken for both languages."""
        return cls(*((values[0], values[-1]) if values else None for values in (name, author)))

    def or_default(self) -> Identity:
        """The same with the defaults filled in."""
        missing = [flag for flag, value in (("--model_name", self.name), ("--model_author", self.author)) if not value]
        if missing:
            notice(
                f"{' and '.join(missing)} not given: where a self-cognition row has {{{{NAME}}}} and {{{{AUTHOR}}}}, "
                "the model is taught to be swift-robot by swift."
            )
        return Identity(self.name or ("swift-robot",) * 2, self.author or ("swift",) * 2)

    def fill(self, row: Any) -> Any:
        """A row as read, its placeholders filled in its language (by ``tag``, or by its characters)."""
        if not isinstance(row, dict) or not self.name or not self.author:
            return row
        chinese = row["tag"] == "zh" if row.get("tag") in ("zh", "en") else bool(_CHINESE.search(str(row)))
        return _replace(row, self.name[not chinese], self.author[not chinese])


def is_self_cognition(name: str) -> bool:
    """Whether a data set of this id or path is one whose placeholders are filled; in no other they are touched."""
    stem = PurePath(name.rstrip("/")).name.split(".")[0]
    return stem.replace("_", "-").endswith("self-cognition")


def _replace(value: Any, name: str, author: str) -> Any:
    if isinstance(value, str):
        return value.replace("{{NAME}}", name).replace("{{AUTHOR}}", author)
    if isinstance(value, list):
        return [_replace(item, name, author) for item in value]
    if isinstance(value, dict):
        return {key: _replace(item, name, author) for key, item in value.items()}
    return value
