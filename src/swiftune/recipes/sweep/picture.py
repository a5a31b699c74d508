"""``sweep.png``: the figure that decides, the time and the memory, against each of the swept values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftune.config.swept import Range, Sweep
from swiftune.recipes.sweep.rows import Row, best_of

LINES = 6
"""Where the other flags have more combinations than this, their runs are dots without a line."""


def draw(folder: Path, sweep: Sweep, rows: Sequence[Row]) -> None:
    """Draws the runs that have ended: a row of panels for each dimension of the sweep, a panel for each figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ended = [row for row in rows if row.state == "done"]
    figures = list(dict.fromkeys([sweep.metric, "train_loss", "train_runtime", "memory(GiB)"]))
    figures = [name for name in figures if any(name in row.figures for row in ended)]
    if not ended or not figures:
        return
    best = best_of(ended, sweep.metric)
    count = len(sweep.dimensions)
    figure = Figure(figsize=(3.4 * len(figures), 2.8 * count), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(count, len(figures), squeeze=False)
    for i, dimension in enumerate(sweep.dimensions):
        for j, name in enumerate(figures):
            _panel(panels[i][j], [row for row in ended if name in row.figures], sweep, i, name, best)
        if panels[i][0].get_legend_handles_labels()[0]:
            panels[i][0].legend(fontsize="x-small")
        if isinstance(dimension, Range) and dimension.log:
            for panel in panels[i]:
                panel.set_xscale("log")
    partial = folder / ".sweep.png.partial"
    figure.savefig(partial, dpi=100, format="png")
    partial.replace(folder / "sweep.png")


def _panel(axes: Any, rows: Sequence[Row], sweep: Sweep, i: int, name: str, best: Row | None) -> None:
    """One figure against one dimension; runs that agree in all others are joined."""
    dimension = sweep.dimensions[i]
    others = [other for other in sweep.names if other not in dimension.names]
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(", ".join(f"{other} {row.run.values[other]}" for other in others), []).append(row)
    joined = len(lines) <= LINES and not isinstance(dimension, Range)
    places = {row.run.name: _place(row, dimension, rows) for row in rows}
    for label, line in lines.items():
        line.sort(key=lambda row: places[row.run.name])
        axes.plot(
            [places[row.run.name] for row in line],
            [row.figures[name] for row in line],
            marker="o",
            linestyle="-" if joined else "none",
            color=None if joined else "C0",
            label=label if joined and label else None,
        )
    if best and best in rows:
        axes.plot(places[best.run.name], best.figures[name], marker="*", markersize=15, color="C3", linestyle="none")
    if not isinstance(dimension, Range):
        ticks = {places[row.run.name]: _label(row, dimension.names) for row in rows}
        axes.set_xticks(list(ticks), list(ticks.values()), rotation=30 if max(map(len, ticks.values())) > 6 else 0)
    if name in ("train_runtime", "memory(GiB)"):
        axes.set_ylim(bottom=0, top=1.1 * axes.get_ylim()[1])  # room for the star
    axes.set_xlabel(" / ".join(dimension.names))
    axes.set_title(name + (" (s)" if name == "train_runtime" else ""), fontsize="medium")
    axes.grid(alpha=0.3)


def _label(row: Row, names: Sequence[str]) -> str:
    label = " / ".join(row.run.values[name] for name in names)
    return label if len(label) <= 24 else label[:23] + "…"


def _place(row: Row, dimension: Any, rows: Sequence[Row]) -> float:
    """Where a run stands on the horizontal axis: by its number, or by the order in which the values were given."""
    if isinstance(dimension, Range):
        return float(row.run.values[dimension.name])
    order = list(dict.fromkeys(tuple(each.run.values[name] for name in dimension.names) for each in rows))
    return float(order.index(tuple(row.run.values[name] for name in dimension.names)))
