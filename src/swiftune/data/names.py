"""How a data set is named on the command line: ``id_or_path[:subset][#N | #P%]``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from decimal import Decimal

from swiftune.errors import UsageError


@dataclass(frozen=True, slots=True)
class DatasetName:
    """A parsed name. Of ``count`` and ``percent`` at most one is set; neither means all rows."""

    id: str
    """What the hub looks up: a path or an id."""
    subset: str | None = None
    count: int | None = None
    percent: Decimal | None = None

    @classmethod
    def parse(cls, text: str) -> DatasetName:
        """Reads a name. A path that exists is taken as it stands, whatever ``:`` and ``#`` it holds.

        Raises:
            UsageError: there is no id, or what follows ``#`` is no positive number of rows or percentage.
        """
        rest, mark, amount = ("", "", "") if os.path.exists(text) else text.rpartition("#")
        if not mark:
            return cls._with_subset(text, text)
        if re.fullmatch(r"[0-9]+", amount) and int(amount) > 0:
            return cls._with_subset(text, rest, count=int(amount))
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", amount) and Decimal(amount[:-1]) > 0:
            return cls._with_subset(text, rest, percent=Decimal(amount[:-1]))
        raise UsageError(
            f"--dataset {text!r}: {amount!r} after # is no positive number of rows and no positive percentage.",
            f"Write for example {rest}#500 or {rest}#10%.",
        )

    @classmethod
    def _with_subset(
        cls, text: str, rest: str, *, count: int | None = None, percent: Decimal | None = None
    ) -> DatasetName:
        name, mark, subset = (rest, "", "") if ":" not in rest or os.path.exists(rest) else rest.rpartition(":")
        if not name.strip() or (mark and not subset.strip()):
            missing = "subset after ':'" if name.strip() else "name"
            raise UsageError(f"--dataset {text!r} has no {missing}.", "Write id_or_path[:subset][#rows].")
        return cls(name.strip(), subset.strip() or None, count, percent)

    def rows_of(self, usable: int) -> int:
        """How many rows are wanted when ``usable`` are there: a percentage is rounded half up, to at least 1."""
        if self.count is not None:
            return self.count
        if self.percent is None:
            return usable
        return max(1, int(usable * self.percent / 100 + Decimal("0.5")))
