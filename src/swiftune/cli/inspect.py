"""The report of ``swift inspect`` for the terminal, on stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swiftune.recipes import inspect as recipe
from swiftune.recipes import inspect_page
from swiftune.runtime.console import say

if TYPE_CHECKING:
    from rich.console import Console

    from swiftune.config import InspectArguments

_BAR = 40
"""Characters of the longest bar."""
_MOST = 8
"""Lines of a table."""


def inspect(args: InspectArguments) -> None:
    """Shows the report, and says where its page is."""
    from rich.console import Console
    from rich.text import Text

    report, folder = recipe.inspect(args)
    console = Console(highlight=False, soft_wrap=True)
    console.print(report.account, markup=False)
    for text in report.first:
        console.print()
        console.print(text)
    _show_lengths(console, report.figures)
    for title, rows, whole in inspect_page.tables(report.figures):
        _show_table(console, title, rows, whole)
    console.print()
    for warning in report.figures["warnings"]:
        console.print(Text.assemble(("warning ", "yellow"), warning))
    say(f"The page is {folder / inspect_page.PAGE}")


def _show_lengths(console: Console, figures: dict[str, Any]) -> None:
    lengths, learned = figures["lengths"], figures["learned_tokens"]
    console.print("\n[bold]Tokens of a row[/]")
    most = max((bar["rows"] for bar in lengths["histogram"]), default=1)
    for bar in lengths["histogram"]:
        console.print(f"  {bar['from']:>7,} – {bar['to']:<7,} {_bar(bar['rows'] / most)} {bar['rows']:,}")
    for name, of in (("rows", lengths), ("learned", learned)):
        console.print(
            f"  {name:<8} mean {of['mean']:,.1f}  median {of['median']:,.0f}  95% {of['p95']:,.0f}  "
            f"99% {of['p99']:,.0f}  longest {of['max']:,}"
        )
    console.print(
        f"  {lengths['share_over_max_length']:.1%} of the rows are longer than --max_length {figures['max_length']}; "
        f"{lengths['max_length_for_95_percent']} covers 95% of them"
    )
    console.print(f"  {figures['tokens']['supervised_share']:.1%} of the tokens are learned")


def _bar(share: float) -> str:
    """A bar in eighths of a character."""
    eighths = round(share * _BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip() or ("▏" if share else "")


def _show_table(console: Console, title: str, rows: list[tuple[str, int]], whole: int) -> None:
    from rich.markup import escape

    console.print(f"\n[bold]{title}[/]")
    shown = rows[:_MOST] if len(rows) > _MOST + 1 else rows
    if rest := rows[len(shown) :]:
        shown = [*shown, (f"{len(rest)} others", sum(count for _, count in rest))]
    width = max((len(name) for name, _ in shown), default=0)
    for name, count in shown:
        share = f"  {count / whole:.1%}" if whole else ""
        console.print(f"  [cyan]{escape(name):<{width}}[/]  {count:>9,}{share}")
