"""Holds every file to its floor: what it imports, inside functions and for type checkers too, lies below it.

The floors, from the ground up; rooms on the second know nothing of one another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import swiftune

HOUSE = Path(swiftune.__file__).parent
FLOORS = {
    "errors": 0,
    "types": 0,
    "runtime": 0,
    "config": 1,
    "hub": 2,
    "data": 2,
    "models": 2,
    "tuners": 2,
    "losses": 2,
    "rewards": 2,
    "train": 3,
    "generate": 3,
    "recipes": 4,
    "serve": 4,
    "tasks": 4,
    "cli": 5,
    "webui": 5,
}
SEPARATE = 2
"""The floor whose rooms do not import each other."""
LIGHT = 1
"""Up to this floor no file imports ``HEAVY``, except for type checkers; ``runtime`` may inside functions."""
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "pyarrow",
    "matplotlib",
    "tensorboard",
    "fastapi",
    "uvicorn",
}

Import = tuple[str, int, bool, bool]
"""Module, line, whether inside a function, whether for type checkers only."""


def imports_of(tree: ast.AST, package: str, inside: bool = False, typing: bool = False) -> Iterator[Import]:
    """Every import below ``tree``, with names made absolute (``package`` is what one leading dot stands for)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside, typing
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *base.split(".")])
            for alias in node.names:  # "from swiftune import data" imports the room, not the name
                yield f"{base}.{alias.name}".strip("."), node.lineno, inside, typing
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            yield from imports_of(ast.Module(node.body, []), package, inside, True)
            yield from imports_of(ast.Module(node.orelse, []), package, inside, typing)
        else:
            deeper = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_of(node, package, deeper, typing)


def faults(source: str, file: str) -> list[str]:
    """What is wrong with the imports of a file of the house; ``file`` is its path inside ``swiftune``."""
    parts = Path(file).with_suffix("").parts
    room = parts[0]
    if room in {"__init__", "__main__"}:  # the door: `swiftune` itself, and `python -m swiftune`
        return []
    if room not in FLOORS:
        return [f"{file}: no floor is known for {room}"]
    floor = FLOORS[room]
    package = ".".join(["swiftune", *parts[:-1]])
    found = []
    for module, line, inside, typing in imports_of(ast.parse(source), package):
        top, _, rest = module.partition(".")
        other = rest.split(".")[0]
        if top == "swiftune" and other in FLOORS and other != room:
            if FLOORS[other] > floor:
                found.append(f"{file}:{line}: {room} (floor {floor}) imports {other} (floor {FLOORS[other]})")
            elif FLOORS[other] == floor == SEPARATE:
                found.append(f"{file}:{line}: {room} and {other} are rooms of floor {floor}")
        elif top in HEAVY and floor <= LIGHT and not typing and not (room == "runtime" and inside):
            found.append(f"{file}:{line}: floor {floor} imports {top}")
    return found


def test_every_file_keeps_to_its_floor() -> None:
    files = sorted(HOUSE.rglob("*.py"))
    assert len(files) > 20
    wrong = [fault for file in files for fault in faults(file.read_text("utf-8"), str(file.relative_to(HOUSE)))]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("errors.py", "from swiftune import config", "floor 0) imports config"),
        ("hub/find.py", "def f():\n    from swiftune.data.load import x", "hub and data"),
        ("hub/find.py", "from ..models import load", "hub and models"),
        ("hub/find.py", "from . import files", None),
        ("data/load.py", "if TYPE_CHECKING:\n    from swiftune.recipes import sft", "imports recipes"),
        ("config/parse.py", "def f():\n    import torch", "imports torch"),
        ("config/parse.py", "if TYPE_CHECKING:\n    import torch", None),
        ("runtime/hardware.py", "def f():\n    import torch.nn", None),
        ("runtime/hardware.py", "import torch.nn", "imports torch"),
        ("train/loop.py", "import torch\nfrom swiftune.hub import find_model", None),
        ("attic/old.py", "", "no floor"),
    ],
)
def test_the_rule_sees_what_it_should(file: str, source: str, expected: str | None) -> None:
    found = faults(source, file)
    assert (expected in found[0]) if expected else not found
