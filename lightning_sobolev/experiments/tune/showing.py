"""Pictures of a search: the settings that were found, and who descends from whom."""

import math
from pathlib import Path

from lightning_sobolev.experiments.tune.history import History


def draw_schedule(path: Path, history: History) -> Path:
    """Draw score and knobs over the steps, the line that led to the best member on top.

    Args:
        path: The picture.
        history: Of the search.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    names = ["score", *(f"knob_{name}" for name in history.knobs)]
    figure = Figure(figsize=(4.0 * len(names), 3.4), layout="constrained")
    line = history.ancestry(history.best)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for member in history.members:
            own = [history.at[i, member] for i in range(1, history.intervals + 1)]
            axes.plot(_ends(own), [float(r[name]) for r in own], color="C7", alpha=0.4, lw=0.8)
        axes.plot(_ends(line), [float(r[name]) for r in line], color="C3", marker="o", ms=3)
        axes.set(title=name.removeprefix("knob_"), xlabel="step")
        if all(float(r[name]) > 0 for r in history.records if math.isfinite(float(r[name]))):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _ends(records: list) -> list[float]:
    return [float(record["end"]) for record in records]


def draw_lineage(path: Path, history: History) -> Path:
    """Draw every member from interval to interval, the color being its first ancestor's.

    Args:
        path: The picture.
        history: Of the search.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 0.4 * len(history.members) + 1.5), layout="constrained")
    axes = figure.subplots()
    best = {(r["interval"], r["member"]) for r in history.ancestry(history.best)}
    root = {member: member for member in history.members}
    for interval in range(1, history.intervals + 1):
        before = dict(root)
        for member in history.members:
            record = history.at[interval, member]
            parent = int(record["parent"])
            root[member] = before[parent]
            width = 3.0 if (record["interval"], record["member"]) in best else 1.0
            color = f"C{root[member] % 10}"
            axes.plot([interval - 1, interval], [parent, member], color=color, lw=width)
            if not math.isfinite(float(record["score"])):
                axes.plot(interval, member, "kx")
    axes.set(xlabel="interval", ylabel="member", yticks=history.members)
    axes.set_title("bold: how the best came about; cross: diverged", fontsize="small")
    figure.savefig(path, dpi=120)
    return path
