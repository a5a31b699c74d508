"""The arguments of ``swift inspect``: those of training that decide which rows it would be given, and how."""

from __future__ import annotations

from swiftune.config.declare import Arguments, unset
from swiftune.config.groups import DataArguments, SourceArguments, TemplateArguments
from swiftune.config.training import FaultArguments, FilterArguments, LengthArguments
from swiftune.config.values import CountOrZero, Folder


class ReportArguments(Arguments):
    """Report: where it is written, and what it shows."""

    output_dir: Folder | None = unset("a new folder output/inspect-DATE-TIME")
    """Where the page, the JSON and the list of rows set aside are put; an earlier report there is replaced."""
    show_rows: CountOrZero = 2
    """First rows shown as they are learned."""


class InspectArguments(
    ReportArguments,
    FilterArguments,
    FaultArguments,
    DataArguments,
    LengthArguments,
    TemplateArguments,
    SourceArguments,
):
    """Arguments of ``swift inspect``."""
