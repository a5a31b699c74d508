"""The report of ``swift inspect`` as files: one page with its picture inside, the figures as JSON, rows set aside."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swiftune.errors import OutputError
from swiftune.recipes.inspect import NEAR_CONTEXT, Report

if TYPE_CHECKING:
    from rich.text import Text

PAGE, FIGURES, PICTURE, ASIDE = "inspect.html", "inspect.json", "lengths.png", "set_aside.jsonl"
_TEMPLATE = Path(__file__).with_name("inspect.html.jinja")
_CLASSES = {"bold green": "learned", "dim": "context", "cyan": "mark"}
"""How the page calls what the terminal shows in these styles."""


def write(folder: Path, report: Report) -> None:
    """Writes every file whole, or not at all; those of an earlier report are replaced.

    Raises:
        OutputError: the folder cannot be written.
    """
    picture = draw(report.figures)
    figures = json.dumps(report.figures, indent=2, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _put(folder / ASIDE, report.ledger.write)
        _put(folder / PICTURE, lambda file: file.write_bytes(picture))
        _put(folder / PAGE, lambda file: file.write_bytes(_bytes(page(report, picture))))
        _put(folder / FIGURES, lambda file: file.write_bytes(_bytes(figures)))
    except OSError as error:
        raise OutputError(
            f"The report cannot be written to {folder}: {error.strerror or error}.", "Name another --output_dir."
        ) from None


def _put(file: Path, write_to: Callable[[Path], Any]) -> None:
    part = file.with_name(f"{file.name}.partial")
    try:
        write_to(part)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # a file's name may hold half a surrogate pair


def draw(figures: dict[str, Any]) -> bytes:
    """The histogram of lengths, a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths, figure = figures["lengths"], Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bars = lengths["histogram"]
    left, width = (bars[0]["from"], bars[0]["to"] + 1 - bars[0]["from"]) if bars else (0, 1)
    axes.bar([bar["from"] for bar in bars], [bar["rows"] for bar in bars], width=width, align="edge", edgecolor="white")
    for name, place, colour in (
        ("median", lengths["median"], "tab:green"),
        ("95%", lengths["p95"], "tab:orange"),
        ("max_length", figures["max_length"], "tab:red"),
        ("80% of the context", NEAR_CONTEXT * (figures["context"] or 0), "tab:purple"),
    ):
        if bars and left < place <= bars[-1]["from"] + width:  # a limit far away would only make the rest small
            axes.axvline(place, color=colour, linestyle="--", label=f"{name}: {place:,.0f}")
    axes.set_xlim(left, bars[-1]["from"] + width if bars else 1)
    axes.set_xlabel("tokens of a row" + (f"; the last bar goes up to {bars[-1]['to']:,}" if bars else ""))
    axes.set_ylabel("rows")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def tables(figures: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, int]], int]]:
    """Title, lines, and what shares are of: 0 for no shares."""
    answers, copies, languages, rows = (figures[name] for name in ("answers", "copies", "languages", "training_rows"))
    yield "Formats", list(figures["formats"].items()), rows
    yield "Turns", list(figures["turns"].items()), rows
    looked_at = languages["rows_looked_at"]
    yield f"Languages of the answers (of {looked_at:,} rows)", list(languages["rows"].items()), looked_at
    counts = [
        ("empty, set aside", answers["empty"]),
        (f"of fewer than {answers['very_short_is_under']} tokens", answers["very_short"]),
        ("the same as another row's", answers["repeated"]),
    ]
    yield "Answers", counts, 0
    names = {"exact": "exact", "near": "near", "exact_of_evaluation": "of a row for evaluation"}
    names["near_of_evaluation"] = "near one of these"
    yield "Copies", [(name, copies[key]) for key, name in names.items()], 0
    yield "With", [("a system prompt", figures["with_system_prompt"]), ("tools", figures["with_tools"])], rows
    for name, classes in figures["classes"].items():
        yield f"Rows of each {name}", list(classes.items()), rows


def page(report: Report, picture: bytes) -> str:
    """The HTML page. It fetches nothing."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        **report.figures,
        account=report.account,
        tables=tables(report.figures),
        picture=base64.b64encode(picture).decode(),
        first=[_pieces(text) for text in report.first],
    )


def _pieces(text: Text) -> list[tuple[str, str]]:
    """The text in pieces of one style each: the style's class, and what is said."""
    from rich.console import Console

    segments = text.render(Console(file=io.StringIO()))
    return [(_CLASSES.get(str(segment.style), ""), segment.text) for segment in segments]
