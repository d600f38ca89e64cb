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

from lightning_sobolev.experiments.common.figures import save
from lightning_sobolev.experiments.report.style import AMOUNTS, COLORS, better, label_of, scale
from lightning_sobolev.experiments.report.tables import Sweep, is_number, shown

log = logging.getLogger(__name__)

_MOST_DASHES, _MOST_PANELS = 4, 20


def save_figures(stem: Path, sweep: Sweep) -> list[Path]:
    """Draw every metric: lines over a number, else points over names.

    Color is the setting that is compared, a dash another one. More settings have panels of their
    own, and then every metric has a file of its own. Bands and bars are one standard error.
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
        return _draw(f"{stem}.png", long, x, lines)
    written = []
    for name, part in long.groupby("measure", sort=False):
        written += _draw(f"{stem}_{str(name).removeprefix('test_')}.png", part, x, lines)
    return written


def save_validations(stem: Path, sweep: Sweep) -> list[Path]:
    """Draw validations over steps, mean and standard error, and over seconds, a line a run.

    The table has a row a run, validation and metric: ``measure``, ``step``, ``seconds`` and
    ``value`` beside the settings. Parts of a network (``val/cut_1/...``) are left out.
    """
    frame = sweep.frame[sweep.frame["measure"].str.count("/") == 1]
    run = [key for key in sweep.settings if key not in ("measure", "step")]
    frame = frame.assign(run=frame.groupby(run, dropna=False).ngroup())
    sweep = replace(sweep, told=[key for key in sweep.told if key in run], frame=frame)
    lines, long = _labeled(sweep, None)
    over_steps = _draw(f"{stem}.png", long, "step", lines)
    one_by_one = {"units": "run", "estimator": None}
    return over_steps + _draw(f"{stem}_seconds.png", long, "seconds", lines, **one_by_one)


def _across(sweep: Sweep) -> str:
    """Choose the horizontal axis: the setting with the most values, rather not the compared one."""
    others = [key for key in sweep.told if key != sweep.against[0]]
    return str(sweep.frame[others or sweep.told].nunique().idxmax())


def _labeled(sweep: Sweep, x: str | None) -> tuple[list[str], pd.DataFrame]:
    """Return the settings of color and dash, and the runs with texts for them and for a panel."""
    compared, baseline = sweep.against
    rest = sorted((key for key in sweep.told if key != x), key=lambda key: key != compared)
    is_line = x is None or is_number(sweep.frame[x])
    texts = rest if is_line else [x, *rest]
    frame = sweep.frame.assign(**{str(key): sweep.frame[key].map(shown) for key in texts})
    if compared in rest:  # the baseline has the first color
        frame = frame.sort_values(compared, key=lambda cells: cells != baseline, kind="stable")
    has_dash = is_line and len(rest) > 1 and frame[rest[1]].nunique() <= _MOST_DASHES
    lines, panels = (rest[:2], rest[2:]) if has_dash else (rest[:1], rest[1:])
    titles = frame[panels].apply(lambda cells: f"{label_of(str(cells.name))} " + cells)
    return lines, frame.assign(panel=titles.agg(", ".join, axis=1) if panels else "")


def _draw(name: str, long: pd.DataFrame, x: str, lines: Sequence[str], **how: Any) -> list[Path]:
    long = long.assign(facet=long["measure"] + "\n" + long["panel"])
    facets = sorted(long["facet"].unique(), key=lambda facet: facet.partition("\n")[2])
    if len(facets) > _MOST_PANELS:
        log.warning("%s is left out: %d panels; choose with --x and --y", name, len(facets))
        return []
    color, dash = (lines[0], lines[-1]) if lines else (None, None)
    if color:
        count = long[color].nunique()
        how |= {"hue": color, "palette": COLORS[:count] if count <= len(COLORS) else "viridis"}
    wrap = math.ceil(len(facets) / math.ceil(len(facets) / 4))
    how |= {"col": "facet", "col_order": facets, "col_wrap": wrap, "height": 3.0, "aspect": 1.2}
    own = {"sharex": False, "sharey": False}
    if is_number(long[x]):
        how |= {"style": dash, "markers": bool(dash) and long[x].nunique() <= 12}
        grid = sns.relplot(long, x=x, y="value", kind="line", errorbar="se", facet_kws=own, **how)
    else:
        how |= {"order": sorted(long[x].unique()), "dodge": 0.4 if color else False, **own}
        how |= {"kind": "point", "linestyle": "none"}
        grid = sns.catplot(long, x=x, y="value", errorbar="se", **how)
    for axes, facet in zip(grid.axes.flat, facets, strict=True):
        measure, _, panel = facet.partition("\n")
        _finish(axes, long[long["facet"] == facet], measure, x)
        axes.set_title(fill(panel, 36))
    grid.tight_layout()
    path = save(grid.figure, Path(name))
    plt.close(grid.figure)
    return [path]


def _finish(axes: Axes, rows: pd.DataFrame, measure: str, x: str) -> None:
    """Set labels, scales and ticks: one at every amount that was tried, shares as fractions."""
    which = better(measure)
    label = label_of(measure) + (f"\n({which} is better)" if which else "")
    axes.set(xlabel=label_of(x), ylabel=label, yscale=scale(measure, rows["value"].min()))
    axes.grid(alpha=0.3)
    if not is_number(rows[x]):
        plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    elif x in AMOUNTS:
        ticks = sorted(rows[x].unique())
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(Fraction(tick).limit_denominator(4096)) for tick in ticks])
        axes.set_xticks([], minor=True)
