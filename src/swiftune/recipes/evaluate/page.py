"""A comparison as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftune.recipes.evaluate import Report
    from swiftune.recipes.evaluate.comparing import Cell, Line

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1d2430; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .45rem .7rem; border-bottom: 1px solid #d9dee7 }
thead th { background: #f3f5f9 } td.n { font-variant-numeric: tabular-nums }
td.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .9rem }
small { color: #667085; display: block } .up { color: #067647 } .down { color: #b42318 }
.bar { background: #e4e8f0; height: .45rem; width: 9rem; position: relative; border-radius: 3px; margin: .3rem 0 }
.bar i { position: absolute; top: 0; bottom: 0; left: 0; background: #4f6bed; border-radius: 3px }
.bar b { position: absolute; top: 3px; height: 2px; background: #1d2430 }
"""


def page(report: Report, folders: Sequence[Path]) -> str:
    """The page of a report."""
    heads = "".join(f"<th>{escape(label)}</th>" for label in report.labels)
    first = escape(report.labels[0])
    lines = "".join(map(_line, report.lines))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{" against ".join(map(escape, report.labels))}</title><style>{_STYLE}</style></head><body>
<h1>The same questions to {len(report.labels)} models</h1>
<table><thead><tr><th>task, figure</th>{heads}</tr></thead><tbody>{lines}{_latency(report)}</tbody></table>
<p><small>In brackets: 95% intervals; of shares Wilson's, of other figures the percentile bootstrap's. Differences are
to {first}, over the same questions, with the interval of the paired bootstrap: coloured where it leaves out 0.
Latencies: medians of questions asked one by one.</small></p>
{_sides(report)}
<h2>Where all answers are</h2><ul>{"".join(f"<li>{escape(str(folder))}</li>" for folder in folders)}</ul>
</body></html>
"""


def _line(line: Line) -> str:
    cells = "".join(f'<td class="n">{_cell(cell, first=i == 0)}</td>' for i, cell in enumerate(line.cells))
    questions = line.cells[0].figure.questions
    return f"<tr><td>{escape(line.task)}<small>{escape(line.figure)}, {questions} questions</small></td>{cells}</tr>"


def _cell(cell: Cell, *, first: bool) -> str:
    figure = cell.figure
    shown = f"<strong>{figure.value:.1f}</strong> [{figure.low:.1f}, {figure.high:.1f}]"
    if 0 <= figure.low <= figure.high <= 100:
        width, left = figure.high - figure.low, figure.low
        shown += f'<div class="bar"><i style="width:{figure.value:.1f}%"></i>'
        shown += f'<b style="left:{left:.1f}%;width:{width:.1f}%"></b></div>'
    if first:
        return shown
    kind = "up" if cell.low > 0 else "down" if cell.high < 0 else ""
    return f'{shown}<small class="{kind}">{cell.difference:+.1f} [{cell.low:+.1f}, {cell.high:+.1f}]</small>'


def _latency(report: Report) -> str:
    def row(name: str, values: list[str]) -> str:
        return f"<tr><td>{name}</td>{''.join(f'<td class=n>{value}</td>' for value in values)}</tr>"

    known = [latency for latency in report.latencies if latency]
    if len(known) < len(report.latencies):
        return ""
    first = row("first token", [f"{1000 * latency.first_token:.0f} ms" for latency in known])
    return first + row("each further token", [f"{1000 * latency.per_token:.1f} ms" for latency in known])


def _sides(report: Report) -> str:
    parts = []
    for task in dict.fromkeys(side.task for side in report.sides):
        rows = []
        for side in (side for side in report.sides if side.task == task):
            told = zip(side.answers, side.scores, strict=True)
            cells = "".join(f'<td class="text"><small>{score:.0f}</small>{escape(text)}</td>' for text, score in told)
            asked = f"{escape(side.question)}<small>{escape(side.reference)}</small>"
            rows.append(f'<tr><td class="text">{asked}</td>{cells}</tr>')
        heads = "".join(f"<th>{escape(label)}</th>" for label in report.labels)
        head = f"<thead><tr><th>question<small>reference</small></th>{heads}</tr></thead>"
        parts.append(
            f"<h2>{escape(task)}: answers that differ most</h2><table>{head}<tbody>{''.join(rows)}</tbody></table>"
        )
    return "".join(parts)
