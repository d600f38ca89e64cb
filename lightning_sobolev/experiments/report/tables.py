"""Means and standard errors over seeds, every case beside its baseline, and the page with both."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.report.runs import ENDS

AMOUNTS = {
    "fraction": "fraction of the training states",
    "num_frames": "training frames",
    "num_points": "training points",
    "num_samples": "training samples",
}


class Metric(NamedTuple):
    """What a metric's numbers mean.

    Args:
        better: Which ones are better, where some are.
        scale: Of the axis.
    """

    better: Literal["lower", "higher", ""]
    scale: Literal["log", "linear"]


ERROR = Metric("lower", "log")
# By a part of the name; the first that fits. All other metrics are errors.
METRICS = {
    "seconds": Metric("", "linear"),
    "accuracy": Metric("higher", "linear"),
    "cosine": Metric("higher", "linear"),
    "return": Metric("higher", "linear"),
    "per_second": Metric("higher", "linear"),
    "score": Metric("", "linear"),
    "noise_": Metric("", "linear"),
    "steps": Metric("", "linear"),
    "copies": Metric("", "linear"),
    "waited": Metric("lower", "linear"),
    "lateness": Metric("lower", "linear"),
    "forgotten": Metric("lower", "linear"),
}
_BEGIN = ("test_", "val_", "validation_", "train_", "seconds", "student_return")
_BESIDE = re.compile(r"(train_|val_).*|.*_standard_error|seconds_total|trainable_parameters")
_FOLLOW = ("experiment", "steps", "lr", "order")  # often chosen by what is compared


def metric(name: str) -> Metric:
    """Return what a metric's numbers mean.

    Args:
        name: Its column.
    """
    return next((meaning for part, meaning in METRICS.items() if part in name), ERROR)


@dataclass(frozen=True, slots=True)
class View:
    """How a table of runs is looked at.

    Args:
        x: The setting along the horizontal axis; by default the amount of data where it varies.
        y: The metrics that are shown; by default those of the test and the seconds.
        against: The setting and the value of it with which its other values are compared.
    """

    x: str | None = None
    y: tuple[str, ...] = ()
    against: tuple[str, str] = ("sobolev", "none")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A table of runs and the columns that are looked at.

    Args:
        frame: A row a run.
        settings: The columns that say what was run.
        told: The settings that tell groups of runs apart; those of a group differ by their seed.
        measures: The metrics that are shown.
        x: The setting along the horizontal axis, if one was chosen or is an amount of data.
        against: See :class:`View`.
    """

    frame: pd.DataFrame
    settings: list[str]
    told: list[str]
    measures: list[str]
    x: str | None
    against: tuple[str, str]

    @classmethod
    def of(cls, frame: pd.DataFrame, view: View | None = None) -> "Sweep":
        """Find the columns of a table.

        Args:
            frame: A row a run.
            view: How it is looked at.

        Raises:
            ValueError: If a column that is named is missing, or a metric holds something else.
        """
        view = View() if view is None else view
        numbers = measures_of(list(frame.columns))
        settings = [column for column in frame.columns if column not in numbers]
        wanted = [name.replace("/", "_") for name in view.y]
        for option, names, known in (
            ("--x", [view.x] if view.x else [], settings),
            ("--y", wanted, numbers),
            ("--against", [view.against[0]] if view.against != View().against else [], settings),
        ):
            if missing := [name for name in names if name not in known]:
                raise ValueError(f"{option} must be among {', '.join(known)}, got {missing[0]}")
        for column in numbers:
            if not pd.api.types.is_numeric_dtype(frame[column]):
                raise ValueError(f"the column {column} must hold numbers, got {frame[column][0]!r}")
        told = _telling_apart(frame, [column for column in settings if column != "seed"], view.x)
        shown = [name for name in numbers if not _BESIDE.fullmatch(name)] or numbers
        x = view.x or next((key for key in AMOUNTS if key in told), None)
        return cls(frame, settings, told, wanted or shown, x, view.against)

    @property
    def errors(self) -> list[str]:
        """The metrics of which less is better."""
        return [name for name in self.measures if metric(name).better == "lower"]


def measures_of(columns: Sequence[str]) -> list[str]:
    """Find the metrics among the columns of a table.

    Behind the last of ``sobolev``, ``seed``, ``lr`` and ``steps``, from the first column on that
    begins with ``test_``, ``val_``, ``validation_``, ``train_``, ``seconds`` or
    ``student_return``, every column is a metric. All others are settings.

    Args:
        columns: In the order of the table.

    Returns:
        The metrics.

    Raises:
        ValueError: If there is none.
    """
    settled = max((place + 1 for place, name in enumerate(columns) if name in ENDS), default=0)
    for place, name in enumerate(columns):
        if place >= settled and name.startswith(_BEGIN):
            return list(columns[place:])
    raise ValueError(
        f"a table of runs must have a column that begins with {', '.join(_BEGIN)} behind its "
        f"settings, got {', '.join(columns)}"
    )


def _telling_apart(frame: pd.DataFrame, settings: list[str], kept: str | None) -> list[str]:
    """Return the settings that vary, without those that only follow the others."""
    groups = frame[settings].drop_duplicates()
    told = [key for key in settings if groups[key].nunique(dropna=False) > 1]
    for key in _FOLLOW:
        rest = [other for other in told if other != key]
        if key in told and key != kept and len(groups[rest].drop_duplicates()) == len(groups):
            told = rest
    return told


def groups(frame: pd.DataFrame, keys: list[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the rows that agree in some columns, and what they agree in.

    Args:
        frame: The rows.
        keys: The columns; none: all rows agree.

    Yields:
        The common cells, and the rows.
    """
    if not keys:
        yield {}, frame
        return
    for cells, rows in frame.groupby(keys, dropna=False):
        yield dict(zip(keys, cells, strict=True)), rows


def summarize(sweep: Sweep) -> pd.DataFrame:
    """Average over seeds.

    Args:
        sweep: Runs.

    Returns:
        A row a group: its settings, how many ``runs`` it has, and of every metric the mean and,
        as ``METRIC_error``, its standard error.
    """
    rows = [
        {**cells, "runs": len(runs)}
        | {name: runs[name].mean() for name in sweep.measures}
        | {f"{name}_error": runs[name].sem() for name in sweep.measures}
        for cells, runs in groups(sweep.frame, sweep.told)
    ]
    return pd.DataFrame(rows)


def compare(sweep: Sweep) -> pd.DataFrame:
    """Set every case beside the baseline with the same other settings.

    Settings below the compared one (``sobolev.weight``) mean nothing in the baseline.

    Args:
        sweep: Runs.

    Returns:
        A row a case: its settings, of every error the ratio of the means and, as ``METRIC_error``,
        its standard error, and where the amount of data varies the ``data factor`` of the first
        error. No row where there is no baseline or no error.
    """
    column, value = sweep.against
    frame, x = sweep.frame.assign(seed=sweep.frame.get("seed", 0)), sweep.x
    if column not in sweep.told or not sweep.errors:
        return pd.DataFrame()
    amount = [x] if x in sweep.told and pd.api.types.is_numeric_dtype(frame[x]) else []
    ours = [key for key in sweep.told if key == column or key.startswith(f"{column}.")]
    rest = [key for key in sweep.told if key not in (*ours, *amount)]
    rows = []
    for _, runs in groups(frame, rest):
        is_baseline = runs[column].astype(str) == value
        baseline = runs[is_baseline]
        for cells, case in groups(runs[~is_baseline], [*rest, *amount, *ours]):
            same = baseline[(baseline[amount] == pd.Series(cells)[amount]).all(axis=1)]
            if len(same):
                row = {key: cells[key] for key in sweep.told}
                for name in sweep.errors:
                    row[name], row[f"{name}_error"] = ratio(
                        _by_seed(case, name), _by_seed(same, name)
                    )
                if amount:
                    curve = baseline.groupby(x)[sweep.errors[0]].mean()
                    mean = case[sweep.errors[0]].mean()
                    row["data factor"] = data_factor(curve, cells[x], mean)
                rows.append(row)
    return pd.DataFrame(rows).sort_values(sweep.told) if rows else pd.DataFrame()


def _by_seed(runs: pd.DataFrame, name: str) -> pd.Series:
    return runs.groupby("seed", dropna=False)[name].mean().dropna()


def ratio(over: pd.Series, under: pd.Series) -> tuple[float, float]:
    """Divide two means.

    The standard error is to first order. Where both have the same seeds it is that of the
    differences of pairs, over - ratio * under: what a seed does to both does not count.

    Args:
        over: The numerator's numbers by seed.
        under: The denominator's.

    Returns:
        The ratio and its standard error; NaN where there is none.
    """
    below = under.mean()
    if not len(over) or not len(under) or below == 0:
        return math.nan, math.nan
    mean = over.mean() / below
    if over.index.equals(under.index):
        error = (over - mean * under).sem()
    else:
        error = math.hypot(over.sem(), mean * under.sem())
    return mean, error / abs(below)


def data_factor(curve: pd.Series, amount: float, value: float) -> float:
    """Say how many times more data the baseline needs to come to a value.

    Read off the straight lines between the baseline's points in log-log scale.

    Args:
        curve: The baseline's mean by the amount of data, in rising order.
        amount: The amount with which the value was reached.
        value: The value.

    Returns:
        The factor; NaN where the curve does not pass through the value.
    """
    for (x, high), (next_x, low) in pairwise(curve.items()):
        if high >= value >= low > 0 and high > low:
            share = math.log(high / value) / math.log(high / low)
            return float(x ** (1 - share) * next_x**share / amount)
    return math.nan


def estimate(mean: float, error: float) -> str:
    """Return a number with its standard error as it is shown; nothing for an unknown number.

    Args:
        mean: The number.
        error: Its standard error; NaN where it is unknown.
    """
    if math.isnan(mean):
        return ""
    return f"{mean:.3g}" if math.isnan(error) else f"{mean:.3g} ± {error:.2g}"


def mean_and_error(values: pd.Series) -> str:
    """Return the mean of some numbers with its standard error; unknown ones are left out."""
    return estimate(values.mean(), values.sem())


def shown(cell: Any) -> str:
    """Return a setting as it is shown: numbers without needless digits, nothing if unknown."""
    if pd.isna(cell):
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)


def markdown(frame: pd.DataFrame) -> str:
    """Return a Markdown table.

    Args:
        frame: With ``METRIC_error`` beside a ``METRIC`` both stand in one column.
    """
    table = {
        name: [estimate(*pair) for pair in zip(frame[name], frame[f"{name}_error"], strict=True)]
        if f"{name}_error" in frame
        else frame[name].map(shown)
        for name in frame
        if not name.endswith("_error") or name.removesuffix("_error") not in frame
    }
    return pd.DataFrame(table).to_markdown(index=False, disable_numparse=True)


def write_page(path: Path, sweep: Sweep, *, source: str) -> None:
    """Write means and ratios as a Markdown page, whole or not at all.

    Args:
        path: The file.
        sweep: Runs.
        source: From which table it was made.
    """
    parts = [f"# {path.stem}", f"Mean ± standard error over seeds, made by `{source}`."]
    first, varies = sweep.frame.iloc[0], sweep.frame.nunique(dropna=False) > 1
    if same := [f"{key} {shown(first[key])}" for key in sweep.settings if not varies[key]]:
        parts.append(f"The same in every run: {', '.join(same)}.")
    parts.append(markdown(summarize(sweep)))
    ratios = compare(sweep)
    if len(ratios):
        about = f"Means divided by those of {'='.join(sweep.against)}; below 1 it has less error."
        if "data factor" in ratios:
            ratios["data factor"] = [f"{n:.1f}" if n == n else "" for n in ratios["data factor"]]
            about += (
                f" Data factor: how many times more data {sweep.against[1]} needs for the same "
                f"{sweep.errors[0]}; empty where no amount brings it there."
            )
        parts += ["## Against the baseline", about, markdown(ratios)]
    write_text(path, "\n\n".join(parts) + "\n")
