"""``swift eval`` in a terminal: tables on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swiftune.config import EvalArguments
from swiftune.runtime.console import say

if TYPE_CHECKING:
    from rich.table import Table

    from swiftune.recipes.evaluate import Report
    from swiftune.recipes.evaluate.comparing import Cell


def evaluate(args: EvalArguments) -> None:
    """Runs the recipe and shows what it found."""
    from rich.console import Console

    console = Console(highlight=False)
    if args.eval_backend == "lm_eval":
        from swiftune.recipes.evaluate.harness import evaluate_with_harness

        text, folder = evaluate_with_harness(args)
        print(text)
        say(f"Answers and figures are in {folder}")
        return
    from swiftune.recipes import evaluate as recipe

    report = recipe.evaluate(args)
    if not args.compare:
        console.print(_single(report, args.seed))
    else:
        console.print(_compared(report))
        for table in _sides(report):
            console.print(table)
    say(f"Answers and figures are in {report.page or report.folder}")


def _single(report: Report, seed: int) -> Table:
    from rich.table import Table

    table = Table("task", "figure", "value", "95% interval", "questions")
    for (result,) in report.results:
        for name, figure in result.figures(seed).items():
            interval = f"{figure.low:.1f} to {figure.high:.1f} ({figure.method})"
            table.add_row(result.task, name, f"{figure.value:.1f}", interval, str(figure.questions))
    return table


def _compared(report: Report) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "figure", "questions", *map(escape, report.labels), show_lines=True)
    for line in report.lines:
        cells = [_cell(cell, first=i == 0) for i, cell in enumerate(line.cells)]
        table.add_row(line.task, line.figure, str(line.cells[0].figure.questions), *cells)
    if all(report.latencies):
        known = [latency for latency in report.latencies if latency]
        table.add_row("latency", "first token", "", *(f"{1000 * each.first_token:.0f} ms" for each in known))
        table.add_row("", "per token", "", *(f"{1000 * each.per_token:.1f} ms" for each in known))
    table.caption = f"[95% intervals]; differences to {escape(report.labels[0])} by the paired bootstrap"
    return table


def _cell(cell: Cell, *, first: bool) -> str:
    figure = cell.figure
    shown = f"{figure.value:.1f} \\[{figure.low:.1f}, {figure.high:.1f}]"
    if first:
        return shown
    colour = "green" if cell.low > 0 else "red" if cell.high < 0 else "dim"
    return f"{shown}\n[{colour}]{cell.difference:+.1f} \\[{cell.low:+.1f}, {cell.high:+.1f}][/]"


def _sides(report: Report) -> list[Table]:
    from rich.markup import escape
    from rich.table import Table

    tables = []
    for task in dict.fromkeys(side.task for side in report.sides):
        title = f"{task}: answers that differ most"
        table = Table("question", *map(escape, report.labels), title=title, show_lines=True)
        for side in (side for side in report.sides if side.task == task):
            texts = [
                f"[dim]{score:.0f}[/] {escape(text)}" for text, score in zip(side.answers, side.scores, strict=True)
            ]
            table.add_row(escape(side.question), *texts)
        tables.append(table)
    return tables
