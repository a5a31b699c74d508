"""Pictures of a run's log: ``images/*.png``."""

from __future__ import annotations

from pathlib import Path

from swiftune.train.run_log import read, step_of

CURVES = {
    "loss": ("loss", "eval_loss"),
    "acc": ("acc", "eval_acc"),
    "learning_rate": ("learning_rate",),
    "grad_norm": ("grad_norm",),
}


def draw(run: Path) -> None:
    """Draws what ``logging.jsonl`` holds, one picture a quantity, training and evaluation in the same one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read(run)
    (run / "images").mkdir(exist_ok=True)
    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    # One place for all, wide enough for 0.00001: looking for the best one would double the time of drawing.
    axes = figure.add_axes((0.11, 0.12, 0.87, 0.85))
    for name, keys in CURVES.items():
        axes.clear()
        for key in keys:
            points = [(step_of(r), r[key]) for r in records if key in r and "train_runtime" not in r]
            if points:
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None, label=key)
        if axes.lines:
            axes.set_xlabel("optimizer step")
            axes.grid(alpha=0.3)
            axes.legend()
            figure.savefig(run / "images" / f"{name}.png", dpi=100)
