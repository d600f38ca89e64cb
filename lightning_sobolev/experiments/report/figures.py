"""Figures over many runs, from the averages of their table alone."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.records import Cell
from lightning_sobolev.experiments.report.tables import Group, MeanAndError, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, MeanAndError]]
Clusters = dict[str, dict[str, MeanAndError]]
_ON_A_LINEAR_SCALE = ("return", "accuracy", "cosine")
_AMOUNTS = {"fraction": "fraction of the training states", "num_frames": "training frames"}


def save_figures(folder: Path, layout: Layout, summary: Summary) -> list[Path]:
    """Draw every measure: curves over the amount of data where a table has one, else bars.

    Args:
        folder: Where the PNG files go.
        layout: The form of the table of runs.
        summary: The averages.

    Returns:
        The files.
    """
    varies = telling_apart(layout, summary)
    amount = next((key for key in _AMOUNTS if key in varies), None)
    if amount is not None:
        return [_save_curves(folder, layout, summary, varies, amount)]
    measures = [measure for measure in layout.measures if measure != "seconds"]
    return [_save_bars(folder, layout, summary, varies, measure) for measure in measures]


def telling_apart(layout: Layout, summary: Collection[Group]) -> list[str]:
    """Return the key columns that are needed to tell the groups apart.

    A learning rate that was tuned for every case varies with the case and says nothing new.

    Args:
        layout: Names the columns.
        summary: The groups.

    Returns:
        Columns that vary, without steps, learning rate and order where the others suffice.
    """
    needed = [key for i, key in enumerate(layout.groups) if len({g[i] for g in summary}) > 1]
    for key in ("steps", "lr", "order"):
        if key in needed:
            rest = [layout.groups.index(other) for other in needed if other != key]
            if len({tuple(group[i] for i in rest) for group in summary}) == len(summary):
                needed.remove(key)
    return needed


def _save_curves(
    folder: Path, layout: Layout, summary: Summary, varies: Sequence[str], amount: str
) -> Path:
    from matplotlib.figure import Figure

    series = [key for key in varies if key != amount]
    measures = [m for m in layout.measures if m != "seconds" and _any_number(summary, m)]
    columns = min(3, len(measures))
    rows = math.ceil(len(measures) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, measure in zip(grid, measures, strict=False):
        curves = _curves(layout, summary, series, amount, measure)
        for label, points in curves.items():
            draw_curve(axes, label, points)
        axes.set(xlabel=_AMOUNTS[amount], title=measure, xscale="log")
        amounts = sorted({x for points in curves.values() for x, _ in points})
        axes.set_xticks(amounts, [_shown(x) for x in amounts])
        axes.set_xticks([], minor=True)
        if not any(word in measure for word in _ON_A_LINEAR_SCALE):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    for axes in grid[len(measures) :]:
        axes.set_axis_off()
    named = figure.axes[0].get_legend_handles_labels()
    title = ", ".join(series)
    # below, not inside: where curves are is not known
    figure.legend(*named, loc="outside lower center", ncols=3, fontsize="small", title=title)
    path = folder / f"{layout.name}.png"
    figure.savefig(path, dpi=120)
    return path


def _curves(
    layout: Layout, summary: Summary, series: Sequence[str], amount: str, measure: str
) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    for group, estimates in summary.items():
        cells = dict(zip(layout.groups, group, strict=True))
        label = ", ".join(_shown(cells[key]) for key in series)
        if estimates[measure].count:
            curves.setdefault(label, []).append((float(cells[amount]), estimates[measure]))
    return {label: sorted(points, key=lambda point: point[0]) for label, points in curves.items()}


def draw_curve(axes: "Axes", label: str, points: Points) -> None:
    """Draw means over positions, with a band of one standard error.

    Args:
        axes: Where.
        label: Of the curve.
        points: Positions in order, each with its mean.
    """
    x = [fraction for fraction, _ in points]
    means = [estimate.mean for _, estimate in points]
    errors = [0.0 if math.isnan(e.error) else e.error for _, e in points]
    (line,) = axes.plot(x, means, marker="o", markersize=3, label=label)
    low = [mean - error for mean, error in zip(means, errors, strict=True)]
    high = [mean + error for mean, error in zip(means, errors, strict=True)]
    axes.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def _save_bars(
    folder: Path, layout: Layout, summary: Summary, varies: Sequence[str], measure: str
) -> Path:
    """Draw a cluster of bars for every setting, a bar for every choice of what is matched.

    Where test functions are compared every other setting has axes of its own.

    Returns:
        The picture.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    compared = "kind" if "kind" in layout.groups else "sobolev"
    panels = _panels(layout, summary, compared, varies, measure)
    choices = sorted({c for panel in panels.values() for bars in panel.values() for c in bars})
    widest = max(len(panel) for panel in panels.values())
    size = (max(4.0, 0.95 * widest + 1.5), 0.6 + 3.2 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    linear = any(word in measure for word in _ON_A_LINEAR_SCALE)
    for axes, (title, clusters) in zip(grid, panels.items(), strict=True):
        _draw_clusters(axes, clusters, choices)
        axes.set(title=f"{measure}, {title}" if title else measure)
        if not linear and _any_number(summary, measure):
            axes.set_yscale("log")
    if any(choices):
        # Not the bars' own labels: the first axes may lack a choice.
        patches = [Patch(color=f"C{n}", label=choice) for n, choice in enumerate(choices) if choice]
        grid[0].legend(handles=patches, title=compared, fontsize="small")
    path = folder / f"{layout.name}_{measure.removeprefix('test_')}.png"
    figure.savefig(path, dpi=120)
    return path


def _draw_clusters(axes: "Axes", clusters: Clusters, choices: Sequence[str]) -> None:
    width = 0.8 / len(choices)
    for number, choice in enumerate(choices):
        known = [(i, bars[choice]) for i, bars in enumerate(clusters.values()) if choice in bars]
        axes.bar(
            [i + width * (number - 0.5 * (len(choices) - 1)) for i, _ in known],
            [estimate.mean for _, estimate in known],
            width,
            yerr=[0.0 if math.isnan(e.error) else e.error for _, e in known],
            capsize=2,
            color=f"C{number}",
        )
    axes.set_xticks(range(len(clusters)), list(clusters), fontsize="x-small")


def _panels(
    layout: Layout, summary: Summary, compared: str, varies: Sequence[str], measure: str
) -> dict[str, Clusters]:
    has_functions = "function" in varies
    panels: dict[str, Clusters] = {}
    for group, estimates in summary.items():
        cells = dict(zip(layout.groups, group, strict=True))
        rest = [key for key in varies if key not in (compared, "function")]
        title = ", ".join(f"{key} {_shown(cells[key])}" for key in rest) if has_functions else ""
        below = ["function"] if has_functions else rest
        label = "\n".join(_shown(cells[key]) for key in below)
        clusters = panels.setdefault(title, {})
        clusters.setdefault(label, {})[_shown(cells.get(compared, ""))] = estimates[measure]
    return panels


def _any_number(summary: Summary, measure: str) -> bool:
    return any(estimates[measure].mean > 0 for estimates in summary.values())


def _shown(cell: Cell) -> str:
    return f"{cell:g}" if isinstance(cell, float | int) else cell
