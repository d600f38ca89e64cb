"""Figures of a search: the settings that were found, and who descends from whom."""

from pathlib import Path

import numpy as np
import pandas as pd

from lightning_sobolev.experiments.common import figures
from lightning_sobolev.experiments.tune.history import ancestry
from lightning_sobolev.experiments.tune.trainable import SETTING


def draw_schedule(path: Path, history: pd.DataFrame, best: int) -> None:
    """Draw score and settings over the steps, the line that led to the best member on top."""
    names = ["score", *(name for name in history.columns if name.startswith(SETTING))]
    figure = figures.blank(4.0 * len(names), 3.4)
    line = ancestry(history, best)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        members = history.pivot(index="end", columns="member", values=name)
        axes.plot(members, color="C7", alpha=0.4, lw=0.8)
        axes.plot(line["end"], line[name], color="C3", marker="o", ms=3)
        is_positive = (history[name].dropna() > 0).all()
        title = name.removeprefix(SETTING)
        axes.set(title=title, xlabel="step", yscale="log" if is_positive else "linear")
        axes.grid(alpha=0.3)
    figures.save(figure, path)


def draw_lineage(path: Path, history: pd.DataFrame, best: int) -> None:
    """Draw every member from interval to interval, the color being its first ancestor's."""
    members = sorted(history["member"].unique())
    figure = figures.blank(7.0, 0.4 * len(members) + 1.5)
    axes = figure.subplots()
    bold = set(ancestry(history, best).index)
    root = {member: member for member in members}
    for interval, rows in history.groupby("interval"):
        root = dict(zip(rows["member"], rows["parent"].map(root), strict=True))
        for member, parent in rows[["member", "parent"]].itertuples(index=False):
            width = 3.0 if (interval, member) in bold else 1.0
            color = f"C{root[member] % 10}"
            axes.plot([interval - 1, interval], [parent, member], color=color, lw=width)
    diverged = history[~np.isfinite(history["score"])]
    axes.plot(diverged["interval"], diverged["member"], "kx")
    axes.set(xlabel="interval", ylabel="member", yticks=members)
    axes.set_title("bold: how the best came about; cross: diverged", fontsize="small")
    figures.save(figure, path)
