"""The kinds of values an argument can have: how they are read, what is said where they are wrong.

A kind is a type that pydantic checks, with a noun beside it where the bare type would say too little::

    max_length: Tokens        # "a whole number of tokens above 0"; shown as --max_length TOKENS
"""

from __future__ import annotations

import json
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from swiftune.runtime.console import hushed


@dataclass(frozen=True)
class Of:
    """What a number counts, or what a text names; the help shows it in place of the value."""

    noun: str


RECORDED = "recorded"
"""Validation context of values read back from an args.json: a text is taken as it stands."""


ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
"""What an adapter may be called."""


def _json_object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _regex(value: str) -> str:
    try:
        with hushed("Possible "):  # "[[" may mean something else in a later Python
            re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error
    return value


def _rows_or_percent(value: str) -> str:
    if re.fullmatch(r"[0-9]{1,18}", value) or (
        re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", value) and float(value[:-1]) <= 100
    ):
        return value
    raise ValueError("write 20 for twenty rows, 5% for every twentieth")


def _split_commas(value: Any) -> Any:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        return value
    return [part for item in values for part in (item.split(",") if isinstance(item, str) else [item]) if part != ""]


def split_name(value: str) -> tuple[str | None, str]:
    """The name and the path in ``name=path``; the name is ``None`` where there is only a path, be there a = in it.

    >>> split_name("code=output/v0/checkpoint-9"), split_name("output/lr=1/checkpoint-9")
    (('code', 'output/v0/checkpoint-9'), (None, 'output/lr=1/checkpoint-9'))
    """
    name, equals, path = value.partition("=")
    return (name, path) if equals and path and ADAPTER_NAME.fullmatch(name) else (None, value)


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def _long_dtype(value: Any) -> Any:
    return (
        {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}.get(
            value, value
        )
        if isinstance(value, str)
        else value
    )


def _text_of(value: Any, info: ValidationInfo) -> Any:
    """The text itself, or what stands in the .txt file it names."""
    if info.context == RECORDED or not isinstance(value, str) or not value.endswith(".txt") or "\n" in value:
        return value
    try:
        return Path(value).read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"that file is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"that file cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _bytes(value: str) -> str:
    if re.fullmatch(r"[0-9]{1,6}([KMGT]i?)?B", value):
        return value
    raise ValueError("write 5GB, 500MB")


Count = Annotated[int, Gt(0)]
CountOrZero = Annotated[int, Ge(0)]
Tokens = Annotated[int, Gt(0), Of("tokens")]
Rows = Annotated[int, Gt(0), Of("rows")]
Steps = Annotated[int, Gt(0), Of("steps")]
StepsOrZero = Annotated[int, Ge(0), Of("steps")]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Epochs = Annotated[float, Gt(0), Of("epochs")]
Seconds = Annotated[int, Gt(0), Of("seconds")]
Processes = Annotated[int, Gt(0), Of("processes")]

Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Shares = list[Share]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]

Name = Annotated[str, Of("name")]
Folder = Annotated[str, Of("folder")]
File = Annotated[str, Of("file")]
RowsOrPercent = Annotated[str, AfterValidator(_rows_or_percent), Of("number or percentage")]
Bytes = Annotated[str, AfterValidator(_bytes), Of("size")]
Regex = Annotated[str, AfterValidator(_regex), Of("regex")]
TextOrFile = Annotated[str, BeforeValidator(_text_of), Of("text or file.txt")]
Json = Annotated[dict[str, Any], BeforeValidator(_json_object)]
Mapping = Annotated[dict[str, str], BeforeValidator(_json_object)]
Dtype = Annotated[Literal["float16", "bfloat16", "float32"], BeforeValidator(_long_dtype)]

Names = Annotated[list[Name], BeforeValidator(listed)]
Words = Annotated[list[str], BeforeValidator(listed)]
CommaNames = Annotated[list[Name], BeforeValidator(_split_commas)]
CommaNumbers = Annotated[list[PositiveOrZero], BeforeValidator(_split_commas)]


@dataclass(frozen=True)
class Kind:
    """A type, in words."""

    expected: str
    """Completes "takes …"; of a list: what one item of it is."""
    metavar: str
    many: bool = False
    boolean: bool = False
    structured: bool = False
    """A JSON object."""
    choices: tuple[str, ...] = ()


def kind_of(annotation: Any, metadata: tuple[Any, ...] = ()) -> Kind:
    """Puts a type (of the kinds above, their unions and lists) into words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0], (*arguments[1:], *metadata))
    if origin in (typing.Union, types.UnionType):
        kinds = [kind_of(argument, metadata) for argument in arguments if argument is not type(None)]
        return kinds[0] if len(kinds) == 1 else _either(kinds)
    if origin is Literal:
        return Kind(either(arguments), "|".join(arguments), choices=arguments)
    if origin is list:
        item = kind_of(arguments[0])
        length = next((m for m in metadata if hasattr(m, "max_length")), None)
        several = " ".join([item.metavar, *([f"[{item.metavar}]"] if length else ["..."])])
        return Kind(item.expected, several, many=True, choices=item.choices)
    if origin is dict:
        return Kind('a JSON object such as \'{"name": "value"}\'', "JSON", structured=True)
    if annotation is bool:
        return Kind("true or false", "true|false", boolean=True, choices=("true", "false"))
    return _scalar(annotation, metadata)


def _scalar(annotation: Any, metadata: tuple[Any, ...]) -> Kind:
    noun = next((m.noun for m in metadata if isinstance(m, Of)), "")
    metavar = noun.replace(" ", "_").upper()
    if annotation is str:
        return Kind(f"a {noun or 'text'}", metavar or "TEXT")
    number = "a whole number" if annotation is int else "a number"
    of = f" of {noun}" if noun else ""
    return Kind(number + of + _bounds(metadata), metavar or ("N" if annotation is int else "X"))


def _bounds(metadata: tuple[Any, ...]) -> str:
    limit = {
        name: value
        for m in metadata
        for name in ("gt", "ge", "lt", "le")
        if (value := getattr(m, name, None)) is not None
    }
    match limit:
        case {"ge": low, "le": high}:
            return f" from {low} to {high}"
        case {"ge": low, "lt": high}:
            return f" from {low} to less than {high}"
        case {"ge": low}:
            return f", {low} or more"
        case {"gt": low}:
            return f" above {low}"
        case _:
            return ""


def _either(kinds: list[Kind]) -> Kind:
    choices = tuple(choice for kind in kinds for choice in kind.choices)
    expected = either(choices) if all(k.choices for k in kinds) else either([k.expected for k in kinds])
    return Kind(
        expected,
        "|".join(kind.metavar for kind in kinds),
        boolean=any(kind.boolean for kind in kinds),
        choices=choices if all(k.choices for k in kinds) else (),
    )


def either(words: typing.Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def nearest(word: str, words: typing.Iterable[str]) -> str:
    """The most similar of the words, or an empty text."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word[:100], list(words), n=1, cutoff=0.6)), "")
