"""The tree of errors: the one that is drawn is the one that is there, on the page for people, too."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from swiftune import errors
from swiftune.errors import SwiftuneError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


def drawn() -> str:
    """The tree in the docstring of ``swiftune.errors``."""
    assert errors.__doc__
    return textwrap.dedent(errors.__doc__.split("\n\n")[1])


def test_the_page_shows_the_tree_of_the_code() -> None:
    assert f"```text\n{drawn()}\n```" in PAGE.read_text(encoding="utf-8")


def test_the_tree_is_true() -> None:
    path: list[str] = []
    shown, codes = set(), {}
    for line in drawn().splitlines():
        found = re.match(r"([│├└─ ]*)(\w+)(?: +exit (\d+))?", line)
        assert found, line
        depth = len(found[1]) // 4
        path[depth:] = [found[2]]
        shown.add(tuple(path))
        codes[found[2]] = int(found[3]) if found[3] else codes.get(path[-2] if depth else "", 1)
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SwiftuneError)]
    lines = {tuple(k.__name__ for k in reversed(kind.__mro__) if issubclass(k, SwiftuneError)) for kind in kinds}
    assert shown == lines
    assert codes == {kind.__name__: kind.exit_code for kind in kinds}
