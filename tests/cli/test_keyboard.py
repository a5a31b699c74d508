from __future__ import annotations

import pytest

from swiftune.cli.keyboard import more_to_come, question


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Who are you?", "Who are you?"),
        ("  hi ", "hi"),
        ("one\\\ntwo\\\nthree", "one\ntwo\nthree"),
        ('"""\ndef f():\n    pass\n"""', "def f():\n    pass"),
        ('"""one line"""', "one line"),
        ("", ""),
    ],
)
def test_a_question_and_its_beginnings(text: str, meant: str) -> None:
    assert not more_to_come(text, until_hash=False)
    assert question(text, until_hash=False) == meant
    for end, character in enumerate(text):
        if character == "\n":
            assert more_to_come(text[:end], until_hash=False)


def test_until_hash() -> None:
    assert more_to_come("one\ntwo", until_hash=True)
    assert not more_to_come("one\ntwo\n#", until_hash=True)
    assert not more_to_come("/single", until_hash=True)
    assert question("one\ntwo #", until_hash=True) == "one\ntwo"
