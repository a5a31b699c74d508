"""What a sweep leaves besides its runs: ``sweep.json``, ``sweep.csv``, ``sweep.md``, ``best.sh``."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftune.config.swept import METRICS, Sweep, less_is_better
from swiftune.errors import OutputError, UsageError
from swiftune.recipes.sweep.rows import Row, best_of
from swiftune.train.run_log import clock

RECORD = "sweep.json"
_SHORT = {"train_runtime": "time", "train_loss": "loss", "memory(GiB)": "GiB"}
"""Heads of the table for people."""


def refuse_another(folder: Path, sweep: Sweep) -> None:
    """Raises UsageError if another sweep is in ``folder``."""
    path = folder / RECORD
    if not path.exists():
        return
    try:
        then = json.loads(path.read_text(encoding="utf-8"))["sweep"]
        changed = _changes(then, sweep.identity())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not the record of a sweep ({error}).", "Name another --output_dir.") from error
    if changed:
        raise UsageError(
            f"--output_dir {folder} has another sweep: {', '.join(changed)}.",
            "Name another --output_dir, or give the same flags, and that sweep goes on.",
        )


def _changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if then["command"] != now["command"]:
        return [f"of swift {then['command']}"]
    if then["swept"].keys() != now["swept"].keys():
        return [f"over {', '.join(then['swept'])}, not {', '.join(now['swept'])}"]
    return [
        f"--{name} ({before.get(name, 'not given')} then, {after.get(name, 'not given')} now)"
        for before, after in ((then["fixed"], now["fixed"]), (then["swept"], now["swept"]))
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def write(folder: Path, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Writes all of the files, each whole.

    Raises:
        OutputError: one cannot be written.
    """
    best = best_of(list(rows), sweep.metric)
    record = {
        "sweep": sweep.identity(),
        "metric": sweep.metric,
        "best": best.run.name if best else None,
        "runs": [
            {
                "folder": row.run.name,
                "values": row.run.values,
                "state": row.state,
                "reason": row.reason,
                **row.figures,
                "command": command_of(sweep, row),
            }
            for row in rows
        ],
    }
    _put(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    names = columns(rows)
    _put(folder / "sweep.csv", _csv(sweep, rows, names))
    _put(folder / "sweep.md", _markdown(sweep, rows, best))
    if best:
        _put(folder / "best.sh", f"#!/bin/sh\n# {verdict(sweep, rows)}\n{command_of(sweep, best)}\n")


def _put(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error


def command_of(sweep: Sweep, row: Row) -> str:
    """The line that trains with the values of a run again."""
    return shlex.join(["swift", sweep.command, *row.run.words])


def verdict(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Which run is the best, in a sentence."""
    best = best_of(list(rows), sweep.metric)
    if best is None:
        return f"No run has ended with a figure called {sweep.metric}."
    ended = sum(row.state == "done" for row in rows)
    side = "least" if less_is_better(sweep.metric) else "greatest"
    values = ", ".join(f"{name} {value}" for name, value in best.run.values.items())
    value = f"{best.figures[sweep.metric]:.4g}"
    return " ".join(f"{values}: {sweep.metric} {value}, the {side} of {ended} runs.".split())


def columns(rows: Sequence[Row]) -> list[str]:
    """The figures that some run has, in the order of the table."""
    had = dict.fromkeys(name for row in rows for name in row.figures)
    return [*(name for name in METRICS if name in had), *(name for name in had if name not in METRICS)]


def cell(name: str, row: Row) -> str:
    """A figure, for people."""
    if name not in row.figures:
        return ""
    value = row.figures[name]
    if name == "train_runtime":
        return clock(value)
    return f"{value:.2f}" if name == "memory(GiB)" else f"{value:,.0f}" if name == "tokens/s" else f"{value:.4g}"


def table(sweep: Sweep, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table for people; a run that has not ended says why in the last column."""
    names = columns(rows)
    ended = all(row.state == "done" for row in rows)
    heads = [*sweep.names, *(_SHORT.get(name, name) for name in names), *([] if ended else ["state"])]
    lines = []
    for row in rows:
        state = "" if row.state == "done" else f"{row.state}: {row.reason}" if row.reason else row.state
        values = [row.run.values[name] for name in sweep.names]
        lines.append([*values, *(cell(name, row) for name in names), *([] if ended else [state])])
    return heads, lines


def _csv(sweep: Sweep, rows: Sequence[Row], names: list[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*sweep.names, *names, "state", "reason", "folder"])
    for row in rows:
        figures = [row.figures.get(name, "") for name in names]
        values = [row.run.values[name] for name in sweep.names]
        writer.writerow([*values, *figures, row.state, row.reason, row.run.name])
    return out.getvalue()


def _markdown(sweep: Sweep, rows: Sequence[Row], best: Row | None) -> str:
    heads, lines = table(sweep, rows)
    strong = [
        [f"**{word}**" if word and row is best else word for word in line]
        for row, line in zip(rows, lines, strict=True)
    ]
    drawn = [heads, ["---"] * len(heads), *strong]
    text = "\n".join(
        "| " + " | ".join(" ".join(word.replace("|", "\\|").split()) for word in line) + " |" for line in drawn
    )
    command = f"\n\n```sh\n{command_of(sweep, best)}\n```" if best else ""
    return f"{text}\n\n{verdict(sweep, rows)}{command}\n"
