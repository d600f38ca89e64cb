"""The curves of one run."""

import math
import re
from pathlib import Path

from lightning_sobolev.experiments.common.figures import blank, save
from lightning_sobolev.experiments.report.runs import read_table
from lightning_sobolev.experiments.report.style import COLORS, label_of, scale
from lightning_sobolev.experiments.run.curves import CURVES

_TERM = re.compile(r"sobolev/\w+(?<!_rows)(?<!_weight)(?<!_ratio)")
_NUMBERED = re.compile(r"\w+_\d+/")  # cut_1/


def save_curves(folder: Path) -> Path | None:
    """Draw what was logged over steps into ``curves.png``, a panel for each unit.

    Metrics that differ in a number alone (``val/cut_1/value_nmse``) share one, the loss shares that
    of the weighted sum of the derivative terms. None where nothing was logged.
    """
    if not (folder / CURVES).is_file():
        return None
    curves = read_table(folder / CURVES).set_index("step").drop(columns="seconds")
    curves = curves.loc[:, curves.fillna(0).any()]  # zero throughout says nothing
    panels = curves.columns.to_series().groupby(_panel, sort=False)
    if not len(panels):
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = blank(4.2 * columns, 3.2 * rows)
    for place, (title, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, place)
        for key, color in zip(keys, COLORS, strict=False):
            line = curves[key].dropna()
            marker = "." if len(line) < 10 else ""
            label = label_of(key.partition("/")[2])
            axes.plot(line.index, line, color=color, label=label, marker=marker, linewidth=1.2)
        yscale = scale(keys.iloc[0], curves[keys].min().min())
        axes.set(xlabel="step", ylabel=title, yscale=yscale)
        axes.grid(alpha=0.3)
        if len(keys) > 1:
            axes.legend(fontsize="small")
    return save(figure, folder / "curves.png")


def _panel(key: str) -> str:
    stage, _, name = key.partition("/")
    if name in ("loss", "sobolev/total"):
        return f"{stage} loss"
    if _TERM.fullmatch(name):
        return f"{stage} terms"
    return f"{stage} {label_of(_NUMBERED.sub('', name))}"
