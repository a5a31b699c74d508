"""The declarations themselves, and the page written from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

import swiftune.config
from swiftune.config import Arguments, SftArguments
from swiftune.config.commands import COMMANDS
from swiftune.config.declare import arguments_of, follows, groups_of, unset
from swiftune.config.reference import PAGE, page
from swiftune.config.values import Count, Names, Tokens


class HatArguments(Arguments):
    """Hats: what is worn."""

    size: Tokens = 3
    """How large. It may
    take two lines."""
    colour: Literal["red", "green"] | None = unset("as it comes")
    """Which colour."""
    feathers: Count = follows("twice the size", lambda values: 2 * values["size"])
    """How many."""
    names: Names = []  # noqa: RUF012
    """Whose."""
    soft: bool | Literal["auto"] = "auto"
    """Whether it is soft."""


class TallHatArguments(HatArguments):
    """Tall hats."""

    size: Tokens = 9


def test_one_declaration_says_everything() -> None:
    size, colour, feathers, names, soft = arguments_of(HatArguments).values()
    assert (size.name, size.group, size.help) == (
        "size",
        ("Hats", "what is worn."),
        "How large. It may take two lines.",
    )
    assert (size.kind.metavar, size.kind.expected, size.default) == ("TOKENS", "a whole number of tokens above 0", "3")
    assert (colour.kind.choices, colour.default) == (("red", "green"), "as it comes")
    assert (feathers.default, feathers.kind.metavar) == ("twice the size", "N")
    assert (names.kind.many, names.kind.metavar, names.default) == (True, "NAME ...", "none")
    assert (soft.kind.boolean, soft.kind.choices) == (True, ("true", "false", "auto"))
    assert HatArguments(size=4).feathers == 8
    assert HatArguments(size=4, feathers=1).feathers == 1


def test_a_command_may_have_a_default_of_its_own() -> None:
    tall = arguments_of(TallHatArguments)["size"]
    assert (tall.default, tall.help, tall.group[0]) == ("9", "How large. It may take two lines.", "Hats")
    assert TallHatArguments().feathers == 18


@pytest.mark.parametrize("command", list(COMMANDS.values()))
def test_every_argument_has_heading_help_and_default(command: type[Arguments]) -> None:
    for argument in arguments_of(command).values():
        assert all(argument.group), argument
        assert argument.help.endswith("."), argument
        assert argument.default, argument
        assert argument.kind.expected, argument
    command()  # the defaults are there


@pytest.mark.parametrize("command", list(COMMANDS.values()))
def test_defaults_pass_their_own_checks(command: type[Arguments]) -> None:
    args = command()
    assert command.model_validate(args.model_dump()).model_dump() == args.model_dump()


def test_headings_come_in_reading_order() -> None:
    titles = [title for title, _ in groups_of(SftArguments)]
    assert titles[:4] == ["Model", "Template", "Length", "Data"]
    assert titles.index("Method") < titles.index("LoRA") < titles.index("Optimizer") < titles.index("Evaluation")


def test_the_reference_page_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / PAGE).read_text(encoding="utf-8")
    assert written == page(), "run: python -m swiftune.config.reference"


def test_public_names() -> None:
    assert swiftune.config.__all__ == sorted(swiftune.config.__all__, key=lambda name: (name.islower(), name))
    assert {name for name in vars(swiftune.config) if name[0].isupper()} == {
        name for name in swiftune.config.__all__ if name[0].isupper()
    }
