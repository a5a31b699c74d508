"""``swift sweep``: its table on stdout, and the command of the best run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from swiftune.recipes.sweep import recipe, report
from swiftune.recipes.sweep.rows import Row, best_of, newest
from swiftune.runtime.console import say

if TYPE_CHECKING:
    from swiftune.config.swept import Sweep


def sweep(sweep: Sweep) -> int:
    """Runs it. 1 where a run failed: the others have run all the same."""
    rows, interrupted = recipe.run(sweep)
    _show(sweep, rows)
    if interrupted:
        raise interrupted
    return int(any(row.state != "done" for row in rows))


def _show(sweep: Sweep, rows: list[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    best = best_of(rows, sweep.metric)
    heads, lines = report.table(sweep, rows)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        table.add_column(Text(head.replace("_", " ")), justify="left" if head == "state" else "right")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*map(Text, line), style="bold green" if row is best else None)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # nobody's lines need to be broken
    console.print(table)
    console.print(report.verdict(sweep, rows), markup=False, soft_wrap=True)
    if best:
        console.print(report.command_of(sweep, best), markup=False, soft_wrap=True)
        flag = "--model" if best.run.given.get("train_type") == "full" else "--adapters"
        say(f"Talk to it: {shlex.join(['swift', 'infer', flag, str(newest(best.folder))])}")
    folder = Path(sweep.options.output_dir)
    say(f"The table and the picture are in {folder}: sweep.csv, sweep.md, sweep.json, sweep.png, best.sh")
