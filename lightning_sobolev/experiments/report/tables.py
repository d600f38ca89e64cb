"""Means and standard errors over seeds, every case beside its baseline, and the page with both."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.report.runs import ENDS
from lightning_sobolev.experiments.report.style import AMOUNTS, metric

BASELINE = "sobolev=none"

_BEGIN = re.compile(r"test[_/]|val_|validation_|train_|seconds|student_return")
_BESIDE = re.compile(
    r"(train_|val_|verify_).*|.*_standard_error|seconds_total|trainable_parameters"
)
_FOLLOW = ("experiment", "steps", "lr", "order")  # often chosen for each value that is compared


@dataclass(frozen=True, slots=True)
class Sweep:
    """A table of runs and the columns that are looked at.

    Args:
        frame: A row a run.
        settings: The columns that say what was run.
        told: Those that tell groups of runs apart; runs of a group differ by their seed.
        measures: The metrics that are shown.
        x: The setting along the horizontal axis: the one that was asked for, or an amount of data.
        against: The setting that is compared, and its value in the baseline.
    """

    frame: pd.DataFrame
    settings: list[str]
    told: list[str]
    measures: list[str]
    x: str | None
    against: tuple[str, str]

    @classmethod
    def of(
        cls, frame: pd.DataFrame, *, x: str = "", y: Sequence[str] = (), against: str = BASELINE
    ) -> "Sweep":
        """Find the columns of a table.

        Args:
            frame: A row a run.
            x: The setting along the horizontal axis; none: the amount of data where it varies.
            y: The metrics that are shown; none: those of the test, and the seconds.
            against: The baseline, ``SETTING=VALUE``.

        Returns:
            The table.

        Raises:
            ValueError: If a column that is named is missing, or a metric holds something else.
        """
        numbers = measures_of(list(frame.columns))
        settings = [column for column in frame.columns if column not in numbers]
        column, _, value = against.partition("=")
        wanted = [name.replace("/", "_") for name in y]
        for option, name, known in (
            *(("--y", name, numbers) for name in wanted),
            *([("--x", x, settings)] if x else []),
            *([("--against", column, settings)] if against != BASELINE else []),
        ):
            if name not in known:
                raise ValueError(f"{option} must be among {', '.join(known)}, got {name}")
        for name in numbers:
            if not is_number(frame[name]):
                raise ValueError(
                    f"the column {name} must hold numbers, got {frame[name].iloc[0]!r}"
                )
        told = _telling_apart(frame, [name for name in settings if name != "seed"], x)
        shown = [name for name in numbers if not _BESIDE.fullmatch(name)] or numbers
        amount = next((name for name in AMOUNTS if name in told), None)
        return cls(frame, settings, told, wanted or shown, x or amount, (column, value))

    def groups(self, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """Yield the runs that agree in some columns, and what they agree in; all for no column."""
        if not keys:
            yield {}, self.frame
            return
        for cells, runs in self.frame.groupby(keys, dropna=False):
            yield dict(zip(keys, cells, strict=True)), runs


def measures_of(columns: Sequence[str]) -> list[str]:
    """Return the metrics: all from the first fitting name behind ``ENDS`` on (docs/report.md)."""
    settled = max((place + 1 for place, name in enumerate(columns) if name in ENDS), default=0)
    for place, name in enumerate(columns):
        if place >= settled and _BEGIN.match(name):
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
    rows = [
        {**cells, "runs": len(runs)} | {name: mean_and_error(runs[name]) for name in sweep.measures}
        for cells, runs in sweep.groups(sweep.told)
    ]
    return pd.DataFrame(rows)


def compare(sweep: Sweep) -> pd.DataFrame:
    """Return every case's errors over those of the baseline with the same other settings, as texts.

    Settings below the compared one (``sobolev.weight``) mean nothing in the baseline. Where the
    amount of data varies there is a ``data factor``, too; no row where there is no baseline.
    """
    column, value = sweep.against
    errors = [name for name in sweep.measures if metric(name).better == "lower"]
    if column not in sweep.told or not errors:
        return pd.DataFrame()
    x = sweep.x or ""
    is_amount = x in sweep.told and is_number(sweep.frame[x])
    ours = [key for key in sweep.told if key == column or key.startswith(f"{column}.")]
    rest = [key for key in sweep.told if key not in (*ours, *([x] if is_amount else []))]
    rows = []
    for _, near in sweep.groups(rest):
        is_baseline = near[column].map(shown) == value
        for cells, runs in replace(sweep, frame=near[~is_baseline]).groups(sweep.told):
            baseline = near[is_baseline]
            same = baseline[baseline[x] == cells[x]] if is_amount else baseline
            if same.empty:
                continue
            rows.append(cells | {name: estimate(*ratio(runs, same, name)) for name in errors})
            if is_amount:
                curve = baseline.groupby(x)[errors[0]].mean()
                factor = data_factor(curve, cells[x], runs[errors[0]].mean())
                rows[-1]["data factor"] = "" if math.isnan(factor) else f"{factor:.1f}"
    return pd.DataFrame(rows).sort_values(sweep.told) if rows else pd.DataFrame()


def ratio(over: pd.DataFrame, under: pd.DataFrame, name: str) -> tuple[float, float]:
    """Return the ratio of two means and its standard error to first order; NaN for no ratio.

    Where both have the same seeds the error is that of the differences over - ratio * under of
    pairs: what a seed does to both does not count. Runs of one seed are averaged first.
    """
    top, bottom = (
        (runs.groupby("seed") if "seed" in runs else runs.groupby(lambda _: 0))[name]
        .mean()
        .dropna()
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

    Read off the straight lines between the baseline's means in log-log scale; NaN where they do
    not pass through the value.
    """
    for (x, high), (next_x, low) in pairwise(curve.items()):
        if high >= value >= low > 0 and high > low:
            share = math.log(high / value) / math.log(high / low)
            return float(x ** (1 - share) * next_x**share / amount)
    return math.nan


def estimate(mean: float, error: float) -> str:
    """Return a number with its standard error as text, without one that is NaN."""
    if math.isnan(mean):
        return ""
    return f"{mean:.3g}" if math.isnan(error) else f"{mean:.3g} ± {error:.2g}"


def mean_and_error(values: pd.Series) -> str:
    """Return the mean of some numbers with its standard error; unknown ones are left out."""
    return estimate(values.mean(), values.sem())


def shown(cell: Any) -> str:
    """Return a cell as it is shown: numbers without needless digits, nothing if unknown."""
    if pd.isna(cell):
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def markdown(frame: pd.DataFrame) -> str:
    """Return a Markdown table."""
    return str(frame.map(shown).to_markdown(index=False, disable_numparse=True))


def write_page(path: Path, sweep: Sweep, *, source: str) -> None:
    """Write means and ratios as a Markdown page, whole or not at all."""
    first, varies = sweep.frame.iloc[0], sweep.frame.nunique(dropna=False) > 1
    parts = [f"# {path.stem}", f"Mean ± standard error over seeds, made by `{source}`."]
    if same := [f"{key} {shown(first[key])}" for key in sweep.settings if not varies[key]]:
        parts.append(f"The same in every run: {', '.join(same)}.")
    parts.append(markdown(summarize(sweep)))
    ratios = compare(sweep)
    if len(ratios):
        about = (
            f"Means divided by those of {'='.join(sweep.against)}; below 1 the error is smaller."
        )
        if "data factor" in ratios:
            about += (
                " Data factor: how many times more data the baseline needs for the same "
                f"{ratios.columns[len(sweep.told)]}; empty where no amount brings it there."
            )
        parts += ["## Against the baseline", about, markdown(ratios)]
    write_text(path, "\n\n".join(parts) + "\n")
