"""Packages that other libraries import as soon as they are installed, asked for or not."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from swiftune.errors import MissingPackageError

BITSANDBYTES = "bitsandbytes"
"""PEFT imports it: a second of start-up, in which it imports PyTorch's compiler."""
_ASKED_FOR = (
    ("peft.import_utils", "is_bnb_available"),
    ("peft.import_utils", "is_bnb_4bit_available"),
    ("transformers.utils.import_utils", "is_bitsandbytes_available"),
)


def put_off(package: str) -> None:
    """Hides ``package`` from every import, until ``bring`` is called."""
    sys.modules.setdefault(package, None)  # type: ignore[arg-type]  # what Python itself takes for "there is none"


def bring(package: str, needed_for: str, install: str = "") -> None:
    """Lets ``package`` be imported, and makes sure that it can be.

    Args:
        needed_for: the flag that asks for it.
        install: what pip is to install, where that is more than the package.

    Raises:
        MissingPackageError: it is not installed.
    """
    if sys.modules.get(package, sys) is None:
        del sys.modules[package]
        for module, function in _ASKED_FOR:  # what was looked up meanwhile
            if module in sys.modules:
                getattr(sys.modules[module], function).cache_clear()
    if find_spec(package) is None:
        line = f"{sys.executable} -m pip install {install or package}"
        raise MissingPackageError(f"{needed_for} needs the package {package}.", f"Install it: {line}")
