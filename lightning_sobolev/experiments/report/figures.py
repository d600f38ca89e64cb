"""Figures over many runs: metrics over the amount of data or another setting, and validations."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from lightning_sobolev.experiments.report.style import AMOUNTS, COLORS, label_of, metric, save
from lightning_sobolev.experiments.report.tables import Sweep, is_number, shown

log = logging.getLogger(__name__)

_BETTER = {"lower": "\n(lower is better)", "higher": "\n(higher is better)", "": ""}
_MOST_DASHES, _MOST_PANELS = 4, 20


def save_figures(stem: Path, sweep: Sweep) -> list[Path]:
    """Draw every metric: lines over a number, else points over names.

    Color is the setting that is compared, a dash another one. More settings have panels of their
    own, and then every metric has a file of its own. Bands and bars are one standard error.
    All runs with the same settings give no figure.

    Args:
        stem: Path of the files, without ending.
        sweep: Runs.

    Returns:
        The files.
    """
    measures = [m for m in sweep.measures if m != "seconds" and sweep.frame[m].nunique() > 1]
    if not sweep.told or not measures:
        return []
    x = sweep.x or _across(sweep)
    lines, frame = _labeled(sweep, x)
    if frame["panel"].nunique() > _MOST_PANELS and x in AMOUNTS:
        x = _across(sweep)
        lines, frame = _labeled(sweep, x)
    long = frame[[x, *lines, "panel", *measures]].melt([x, *lines, "panel"], var_name="measure")
    if frame["panel"].nunique() == 1:
        return _draw(_png(stem), long, x, lines)
    written = []
    for measure in measures:
        path = _png(stem, f"_{measure.removeprefix('test_')}")
        written += _draw(path, long[long["measure"] == measure], x, lines)
    return written


def save_validations(stem: Path, sweep: Sweep) -> list[Path]:
    """Draw validations over steps, mean and standard error, and over seconds, a line a run.

    Args:
        stem: Path of the files, without ending.
        sweep: A row a run, validation and metric, with ``measure``, ``step``, ``seconds`` and
            ``value`` beside the settings. Parts of a network (``val/cut_1/...``) are left out.

    Returns:
        The files.
    """
    places = ("measure", "step")
    frame = sweep.frame[sweep.frame["measure"].str.count("/") == 1]
    run = frame[[key for key in sweep.settings if key not in places]].apply(tuple, axis=1)
    told = [key for key in sweep.told if key not in places]
    sweep = replace(sweep, told=told, frame=frame.assign(run=run.map(str)))
    lines, long = _labeled(sweep, None)
    by_time = _draw(_png(stem, "_seconds"), long, "seconds", lines, units="run", estimator=None)
    return _draw(_png(stem), long, "step", lines) + by_time


def _png(stem: Path, more: str = "") -> Path:
    return stem.with_name(f"{stem.name}{more}.png")


def _across(sweep: Sweep) -> str:
    """Choose the horizontal axis: the setting with the most values, rather not the compared one."""
    values = sweep.frame[sweep.told].nunique()
    others = values.drop(sweep.against[0], errors="ignore")
    return str((others if len(others) else values).idxmax())


def _labeled(sweep: Sweep, x: str | None) -> tuple[list[str], pd.DataFrame]:
    """Return the settings of color and dash, and the runs with texts for them and for a panel."""
    compared, baseline = sweep.against
    rest = sorted((key for key in sweep.told if key != x), key=lambda key: key != compared)
    is_line = x is None or is_number(sweep.frame[x])
    texts = rest if is_line else [x, *rest]
    frame = sweep.frame.assign(**{str(key): sweep.frame[key].map(shown) for key in texts})
    if compared in rest:  # the baseline has the first color
        frame = frame.sort_values(compared, key=lambda cells: cells != baseline, kind="stable")
    lines, panels = rest[:2], rest[2:]
    if len(lines) == 2 and not (is_line and frame[lines[1]].nunique() <= _MOST_DASHES):
        lines, panels = rest[:1], rest[1:]
    titles = [frame[key].map(f"{label_of(key)} {{}}".format) for key in panels]
    frame["panel"] = [", ".join(parts) for parts in zip(*titles, strict=True)] if titles else ""
    return lines, frame


def _draw(path: Path, long: pd.DataFrame, x: str, lines: Sequence[str], **how: Any) -> list[Path]:
    facets = long[["measure", "panel"]].drop_duplicates().sort_values("panel", kind="stable")
    if len(facets) > _MOST_PANELS:
        log.warning("%s is left out: %d panels; choose with --x and --y", path, len(facets))
        return []
    color, dash = (lines[0], lines[-1]) if lines else (None, None)
    how |= {"hue": color, "palette": _palette(long[color].nunique())} if color else {}
    rows = math.ceil(len(facets) / 4)
    how |= {
        "col_wrap": math.ceil(len(facets) / rows),
        "height": 3.0,
        "aspect": 1.2,
        "errorbar": "se",
    }
    long = long.assign(facet=long["measure"] + "\n" + long["panel"])
    how |= {"col": "facet", "col_order": list(facets["measure"] + "\n" + facets["panel"])}
    own = {"sharex": False, "sharey": False}
    if numeric := is_number(long[x]):
        how |= {"kind": "line", "style": dash, "markers": bool(dash) and long[x].nunique() <= 12}
        grid = sns.relplot(long, x=x, y="value", facet_kws=own, **how)
    else:
        how |= {"kind": "point", "linestyle": "none", "dodge": 0.4 if color else False, **own}
        grid = sns.catplot(long, x=x, y="value", order=sorted(long[x].unique()), **how)
    for axes, (measure, panel) in zip(grid.axes.flat, facets.itertuples(index=False), strict=True):
        shown_here = long[(long["measure"] == measure) & (long["panel"] == panel)]
        _finish(axes, shown_here, x if numeric else None)
        better = _BETTER[metric(measure).better]
        axes.set(title=fill(panel, 36), xlabel=label_of(x), ylabel=label_of(measure) + better)
    grid.tight_layout()
    save(grid.figure, path)
    plt.close(grid.figure)
    return [path]


def _palette(count: int) -> Sequence[str]:
    return COLORS[:count] if count <= len(COLORS) else sns.color_palette("viridis", count)


def _finish(axes: Axes, rows: pd.DataFrame, x: str | None) -> None:
    """Set scales and ticks: a tick at every amount that was tried, shares as fractions."""
    axes.grid(alpha=0.3)
    values = rows["value"].dropna()
    if len(values) and values.min() > 0:
        axes.set_yscale(metric(rows["measure"].iloc[0]).scale)
    if x is None:
        plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    elif x in AMOUNTS:
        ticks = sorted(rows[x].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(Fraction(tick).limit_denominator(4096)) for tick in ticks])
        axes.set_xticks([], minor=True)
