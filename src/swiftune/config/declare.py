"""How an argument is declared: once, as a field with its sentence of help beneath it.

::

    class LoraArguments(Arguments):
        \"\"\"LoRA: small trained matrices beside frozen weights.\"\"\"

        lora_rank: Count = 8
        \"\"\"Rank of the two matrices.\"\"\"

From this come the flag ``--lora_rank``, its check, its help, the key of a YAML file, the heading it stands under
("LoRA", what precedes the colon), and its line on the reference page.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from swiftune.config.values import Kind, kind_of


class Arguments(BaseModel):
    """Base of every group and of every command's arguments."""

    model_config = ConfigDict(
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        defer_build=True,  # a help page validates nothing
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )


def unset(meaning: str) -> Any:
    """A default of ``None``, with what it means."""
    return Field(default=None, json_schema_extra={"default": meaning})


def follows(meaning: str, value: Callable[[dict[str, Any]], Any]) -> Any:
    """A default that depends on arguments declared before it, with how it does in words."""
    return Field(default_factory=value, json_schema_extra={"default": meaning})


@dataclass(frozen=True)
class Argument:
    """What there is to know of one argument, for whoever shows or reads it."""

    name: str
    group: tuple[str, str]
    """Heading, and the remark beside it."""
    help: str
    kind: Kind
    default: str


@cache
def arguments_of(command: type[Arguments]) -> dict[str, Argument]:
    """The arguments of a command by name, in the order in which a page shows them."""
    return {name: _argument(command, name, field) for name, field in command.model_fields.items()}


def groups_of(command: type[Arguments]) -> dict[tuple[str, str], list[Argument]]:
    """The arguments of a command under their headings."""
    groups: dict[tuple[str, str], list[Argument]] = {}
    for argument in arguments_of(command).values():
        groups.setdefault(argument.group, []).append(argument)
    return groups


def _argument(command: type[Arguments], name: str, field: FieldInfo) -> Argument:
    # A command may give a field of a group another default; heading and help remain those of the group.
    owners = [
        cls for cls in reversed(command.__mro__) if issubclass(cls, Arguments) and name in inspect.get_annotations(cls)
    ]
    sentence = next(text for text in (cls.model_fields[name].description for cls in reversed(owners)) if text)
    title, _, remark = (owners[0].__doc__ or "").partition(":")
    return Argument(
        name=name,
        group=(title.strip(), remark.strip()),
        help=" ".join(sentence.split()),
        kind=kind_of(field.annotation, tuple(field.metadata)),
        default=_default(field),
    )


def _default(field: FieldInfo) -> str:
    if isinstance(field.json_schema_extra, dict):
        return str(field.json_schema_extra["default"])
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
