"""The curves of one run."""

import math
import re
from pathlib import Path

import pandas as pd

from lightning_sobolev.experiments.report.runs import read_table
from lightning_sobolev.experiments.report.style import COLORS, label_of, metric, save
from lightning_sobolev.experiments.run.curves import CURVES

Panels = dict[str, dict[str, "pd.Series[float]"]]

_NUMBERED = re.compile(r"\w+_\d+/")  # cut_1/


def save_curves(folder: Path) -> Path | None:
    """Draw what was logged over steps into ``curves.png``, a panel for each unit.

    The loss shares one with the weighted sum of the derivative terms, the terms share another;
    metrics that differ in a number alone (``val/cut_1/value_nmse``) share theirs.

    Args:
        folder: The folder of a run, with its ``curves.csv``.

    Returns:
        The figure's path, or None when nothing was logged.

    Raises:
        ValueError: If the file is damaged.
    """
    from matplotlib.figure import Figure

    panels = _panels(read_table(folder / CURVES)) if (folder / CURVES).is_file() else {}
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (title, lines) in zip(grid, panels.items(), strict=False):
        for (label, line), color in zip(lines.items(), COLORS, strict=False):
            marker = "." if len(line) < 10 else ""
            axes.plot(line.index, line, color=color, label=label, marker=marker, linewidth=1.2)
        is_positive = all(line.min() > 0 for line in lines.values())
        scale = metric(title.replace(" ", "_")).scale if is_positive else "linear"
        axes.set(xlabel="step", ylabel=title, yscale=scale)
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize="small")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return save(figure, folder / "curves.png")


def _panels(curves: pd.DataFrame) -> Panels:
    """Sort metrics into panels; one that is zero throughout says nothing."""
    panels: Panels = {}
    for key in curves.columns.drop(["step", "seconds"]):
        line = curves.set_index("step")[key].dropna()
        stage, _, name = str(key).partition("/")
        label, panel = name, f"{stage} {label_of(_NUMBERED.sub('', name))}"
        if name in ("loss", "sobolev/total"):
            panel = f"{stage} loss"
        elif re.fullmatch(r"sobolev/\w+(?<!_rows)(?<!_weight)(?<!_ratio)", name):
            panel = f"{stage} terms"
        if line.any():
            panels.setdefault(panel, {})[label_of(label)] = line
    return panels
