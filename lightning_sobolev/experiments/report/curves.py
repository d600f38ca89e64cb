"""The curves of one run: losses and validations over its steps."""

import math
import re
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sobolev.experiments.report.figures import COLORS, label_of, save
from lightning_sobolev.experiments.report.runs import read_table
from lightning_sobolev.experiments.report.tables import metric

CURVES = "curves.csv"
_MOST_LABELS = 8
_NUMBER = re.compile(r"\w+_\d+/")  # cut_1/


def save_curves(folder: Path) -> Path | None:
    """Draw the curves of a run into ``curves.png``.

    The loss and its terms share a panel. Every validation metric has its own; metrics that differ
    in a number alone (``val/cut_1/value_nmse``, ``val/cut_2/value_nmse``) share one.

    Args:
        folder: The folder of a run, with its ``curves.csv``: ``step``, ``seconds`` and metrics.

    Returns:
        The figure, or None where nothing was logged.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / CURVES
    curves = read_table(path).set_index("step").drop(columns="seconds") if path.is_file() else None
    panels = {} if curves is None else _panels(curves)
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        _draw(axes, title, lines)
    for axes in list(grid)[len(panels) :]:
        axes.set_axis_off()
    return save(figure, folder / "curves.png")


def _panels(curves: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """Return what is drawn by panel and label; a metric that is always zero says nothing."""
    panels: dict[str, dict[str, pd.Series]] = {}
    for key in curves:
        line = curves[key].dropna()
        if not line.any():
            continue
        stage, _, name = str(key).partition("/")
        panel, label = f"{stage} {label_of(_NUMBER.sub('', name))}", ""
        if number := _NUMBER.search(name):
            label = number[0].strip("/_").replace("_", " ")
        if name == "loss" or name.startswith("sobolev/"):
            panel, label = f"{stage} losses", label_of(name)
        panels.setdefault(panel, {})[label] = line
    return panels


def _draw(axes: Axes, title: str, lines: dict[str, pd.Series]) -> None:
    for place, (label, line) in enumerate(lines.items()):
        color, dash = COLORS[place % len(COLORS)], "-" if place < len(COLORS) else "--"
        legend = label if place < _MOST_LABELS else None
        axes.plot(line.index, line, dash, color=color, label=legend, marker="." * (len(line) < 9))
    is_positive = all(line.min() > 0 for line in lines.values())
    axes.set(title=title, xlabel="step", ylabel=title.partition(" ")[2])
    axes.set_yscale(metric(title.replace(" ", "_")).scale if is_positive else "linear")
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend(fontsize="small")
