"""Means and standard errors over seeds, every case beside its baseline, and the page with both."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.report.runs import ENDS
from lightning_sobolev.experiments.report.style import AMOUNTS, better

BASELINE = "sobolev=none"

_BEGIN = re.compile(r"test[_/]|val_|validation_|train_|seconds|student_return")
_BESIDE = r"(train_|val_|verify_).*|.*_standard_error|seconds_total|trainable_parameters"
_FOLLOW = ("experiment", "steps", "lr", "order")  # often chosen for each value that is compared


@dataclass(frozen=True, slots=True)
class Sweep:
    """A table of runs and the columns that are looked at."""

    frame: pd.DataFrame  # a row a run
    settings: list[str]  # the columns that say what was run
    told: list[str]  # those that tell groups apart; runs of a group differ by their seed
    measures: list[str]  # the metrics that are shown
    x: str | None  # along the horizontal axis: what was asked for, or an amount of data
    against: tuple[str, str]  # the setting that is compared, and its value in the baseline

    @classmethod
    def of(
        cls, frame: pd.DataFrame, *, x: str = "", y: Sequence[str] = (), against: str = BASELINE
    ) -> "Sweep":
        """Find the columns of a table; ``y`` are metrics, ``against`` is ``SETTING=VALUE``."""
        numbers = measures_of(list(frame.columns))
        settings = [column for column in frame.columns if column not in numbers]
        column, _, value = against.partition("=")
        wanted = [name.replace("/", "_") for name in y]
        named = [("--y", name, numbers) for name in wanted]
        named += [("--x", x, settings)] if x else []
        named += [("--against", column, settings)] if against != BASELINE else []
        for option, name, known in named:
            if name not in known:
                raise ValueError(f"{option} must be among {', '.join(known)}, got {name}")
        for name in numbers:
            if not is_number(frame[name]):
                got = frame[name].iloc[0]
                raise ValueError(f"the column {name} must hold numbers, got {got!r}")
        told = _telling_apart(frame, [name for name in settings if name != "seed"], x)
        shown = [name for name in numbers if not re.fullmatch(_BESIDE, name)] or numbers
        amount = next((name for name in AMOUNTS if name in told), None)
        return cls(frame, settings, told, wanted or shown, x or amount, (column, value))


def measures_of(columns: Sequence[str]) -> list[str]:
    """Return the metrics: all from the first fitting name behind ``ENDS`` on (docs/report.md)."""
    settled = max((place + 1 for place, name in enumerate(columns) if name in ENDS), default=0)
    for place in range(settled, len(columns)):
        if _BEGIN.match(columns[place]):
            return list(columns[place:])
    raise ValueError(
        "a table of runs must have a metric (test_..., seconds) behind its settings, got "
        f"{', '.join(columns)}"
    )


def is_number(column: pd.Series) -> bool:
    """Say whether a column holds numbers; yes and no are none."""
    return column.dtype.kind in "iuf"


def _telling_apart(frame: pd.DataFrame, settings: list[str], kept: str) -> list[str]:
    """Return the settings that vary, without those that only follow the others."""
    groups = frame[settings].drop_duplicates()
    told = [key for key in settings if groups[key].nunique(dropna=False) > 1]
    for key in _FOLLOW:
        rest = [other for other in told if other != key]
        if key in told and key != kept and len(groups[rest].drop_duplicates()) == len(groups):
            told = rest
    return told


def summarize(sweep: Sweep) -> pd.DataFrame:
    """Average over seeds: a row a group, its settings, its runs, and its means as texts."""
    groups = sweep.frame.assign(runs=1).groupby(sweep.told or (lambda _: 0), dropna=False)
    cells = dict.fromkeys(sweep.measures, lambda values: estimate(values.mean(), values.sem()))
    means = groups.agg({"runs": "sum", **cells})
    return means.reset_index(drop=not sweep.told)


def compare(sweep: Sweep) -> pd.DataFrame:
    """Return every case's errors over those of the baseline with the same other settings, as texts.

    Settings below the compared one (``sobolev.weight``) mean nothing in the baseline.
    """
    column, value = sweep.against
    errors = [name for name in sweep.measures if better(name) == "lower"]
    if column not in sweep.told or not errors:
        return pd.DataFrame()
    x = sweep.x if sweep.x in sweep.told and is_number(sweep.frame[sweep.x]) else None
    rest = [key for key in sweep.told if key.split(".")[0] != column and key != x]
    is_baseline = sweep.frame[column].map(shown) == value
    rows = []
    for names, runs in sweep.frame[~is_baseline].groupby(sweep.told, dropna=False):
        cells = dict(zip(sweep.told, names, strict=True))
        curve = _alike(sweep.frame[is_baseline], cells, rest)
        same = _alike(curve, cells, [x]) if x else curve
        if same.empty:
            continue
        rows.append(cells | {name: estimate(*ratio(runs, same, name)) for name in errors})
        if x:
            means = curve.groupby(x)[errors[0]].mean()
            factor = data_factor(means, cells[x], runs[errors[0]].mean())
            rows[-1]["data factor"] = "" if math.isnan(factor) else f"{factor:.1f}"
    return pd.DataFrame(rows)


def _alike(frame: pd.DataFrame, cells: dict[str, Any], keys: list[str]) -> pd.DataFrame:
    for key in keys:
        frame = frame[frame[key].map(shown) == shown(cells[key])]
    return frame


def ratio(over: pd.DataFrame, under: pd.DataFrame, name: str) -> tuple[float, float]:
    """Return the ratio of two means and its standard error to first order; NaN for no ratio.

    Where both have the same seeds the error is that of the differences over - ratio * under of
    pairs: what a seed does to both does not count. Runs of one seed are averaged first.
    """
    top, bottom = (
        runs.groupby("seed" if "seed" in runs else lambda _: 0)[name].mean().dropna()
        for runs in (over, under)
    )
    if top.empty or bottom.empty or bottom.mean() == 0:
        return math.nan, math.nan
    mean = top.mean() / bottom.mean()
    if top.index.equals(bottom.index):
        error = (top - mean * bottom).sem()
    else:
        error = math.hypot(top.sem(), mean * bottom.sem())
    return mean, error / abs(bottom.mean())


def data_factor(curve: pd.Series, amount: float, value: float) -> float:
    """Return how many times more data than ``amount`` the baseline needs to come to a value.

    Read off straight lines in log-log scale; NaN where they do not pass through the value.
    """
    for (x, high), (next_x, low) in pairwise(curve.items()):
        if high >= value >= low > 0 and high > low:
            share = math.log(high / value) / math.log(high / low)
            return float(x ** (1 - share) * next_x**share / amount)
    return math.nan


def estimate(mean: float, error: float) -> str:
    """Return a number with its standard error as text, without what is NaN."""
    if math.isnan(mean):
        return ""
    return f"{mean:.3g}" if math.isnan(error) else f"{mean:.3g} ± {error:.2g}"


def shown(cell: Any) -> str:
    """Return a cell as it is shown: numbers without needless digits, nothing if unknown."""
    if pd.isna(cell):
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def write_page(path: Path, sweep: Sweep, *, source: str) -> None:
    """Write means and ratios as a Markdown page, whole or not at all."""
    first, varies = sweep.frame.iloc[0], sweep.frame.nunique(dropna=False) > 1
    parts = [f"# {path.stem}", f"Mean ± standard error over seeds, made by `{source}`."]
    if same := [f"{key} {shown(first[key])}" for key in sweep.settings if not varies[key]]:
        parts.append(f"The same in every run: {', '.join(same)}.")
    parts.append(_markdown(summarize(sweep)))
    ratios = compare(sweep)
    if len(ratios):
        note = f"Means divided by those of {'='.join(sweep.against)}; below 1 the error is smaller."
        if "data factor" in ratios:
            note += (
                " Data factor: how many times more data the baseline needs for the same "
                f"{ratios.columns[len(sweep.told)]}; empty where no amount brings it there."
            )
        parts += ["## Against the baseline", note, _markdown(ratios)]
    write_text(path, "\n\n".join(parts) + "\n")


def _markdown(frame: pd.DataFrame) -> str:
    return str(frame.map(shown).to_markdown(index=False, disable_numparse=True))
