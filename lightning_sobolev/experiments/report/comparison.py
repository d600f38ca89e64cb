"""What matching derivatives changed: every case beside the one that matches none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.records import Cell
from lightning_sobolev.experiments.report.tables import Group, MeanAndError, Summary, line_of, plain

BASELINE = "none"
TUNED = ("sobolev", "order", "lr")
_NOT_ERRORS = ("return", "seconds", "accuracy")
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case that matches derivatives, beside its baseline.

    Args:
        case: What both have in common.
        sobolev: What the case matches.
        ratios: For every error measure, its mean divided by the baseline's.
        data_factor: How many times more data the baseline needs for the same first measure; NaN
            where no amount among those measured brings it there.
    """

    case: dict[str, Cell]
    sobolev: Cell
    ratios: dict[str, MeanAndError]
    data_factor: float


def compare(layout: Layout, summary: Summary) -> list[Comparison]:
    """Set every case beside the baseline that differs in what is matched and learning rate alone.

    The error of a ratio a / b is (a / b) sqrt((da / a)^2 + (db / b)^2), to first order, for
    independent means.

    Args:
        layout: Names the columns.
        summary: The averages.

    Returns:
        The comparisons, in the order of the averages; none where nothing has one clear baseline.
    """
    if "sobolev" not in layout.groups:
        return []
    errors = [name for name in layout.measures if not any(word in name for word in _NOT_ERRORS)]
    baselines = _baselines(layout, summary)
    found = []
    for group, estimates in summary.items():
        case = _case(layout, group)
        matches = dict(zip(layout.groups, group, strict=True))["sobolev"]
        baseline = baselines.get(tuple(case.values()), [])
        if matches != BASELINE and len(baseline) == 1:
            ratios = {name: ratio(estimates[name], baseline[0][name]) for name in errors}
            curve = _curve(layout, baselines, case, errors[0])
            fraction = float(case.get("fraction", 1.0))
            factor = data_factor(curve, fraction, estimates[errors[0]].mean)
            found.append(Comparison(case, matches, ratios, factor))
    return found


def ratio(over: MeanAndError, under: MeanAndError) -> MeanAndError:
    """Divide two means; see :func:`compare`.

    Args:
        over: The numerator.
        under: The denominator.

    Returns:
        The ratio and its standard error, NaN where one of the means has none;
        no estimate where one of them is missing or zero.
    """
    if not over.count or not under.count or not under.mean or not over.mean:
        return MeanAndError(math.nan, math.nan, 0)
    mean = over.mean / under.mean
    error = abs(mean) * math.hypot(over.error / over.mean, under.error / under.mean)
    return MeanAndError(mean, error, min(over.count, under.count))


def data_factor(curve: Sequence[Point], fraction: float, value: float) -> float:
    """Say how many times more data the baseline needs to come to a value.

    Read off the straight lines between the baseline's points in log-log scale.

    Args:
        curve: Fraction of the data and the baseline's mean, in rising order.
        fraction: The share of the data with which the value was reached.
        value: The value.

    Returns:
        The factor; NaN where the curve does not pass through the value.
    """
    for (x, high), (next_x, low) in pairwise(curve):
        if high >= value >= low > 0 and high > low:
            share = math.log(high / value) / math.log(high / low)
            return math.exp((1 - share) * math.log(x) + share * math.log(next_x)) / fraction
    return math.nan


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Write comparisons as the lines of a Markdown table.

    Args:
        comparisons: Of one table.

    Returns:
        The lines, title and explanation included; none for no comparisons.
    """
    if not comparisons:
        return []
    first = comparisons[0]
    constant = [k for k in first.case if len({c.case[k] for c in comparisons}) == 1]
    keys = [key for key in first.case if key not in constant]
    has_factor = "fraction" in first.case
    header = [*keys, "sobolev", *first.ratios, *(["data factor"] if has_factor else [])]
    about = f"Means divided by those of sobolev={BASELINE}; below 1 the derivatives help."
    if has_factor:
        about += (
            f" Data factor: how many times more data {BASELINE} needs for the same "
            f"{next(iter(first.ratios))}; empty where no amount brings it there."
        )
    lines = ["", "## Against the baseline", "", about, ""]
    lines += [line_of(header), line_of(["---"] * len(header))]
    for one in comparisons:
        cells = [plain(one.case[key]) for key in keys] + [plain(one.sobolev)]
        cells += [str(estimate) for estimate in one.ratios.values()]
        if has_factor:
            cells.append("" if math.isnan(one.data_factor) else f"{one.data_factor:.1f}")
        lines.append(line_of(cells))
    return lines


def _case(layout: Layout, group: Group) -> dict[str, Cell]:
    cells = dict(zip(layout.groups, group, strict=True))
    return {key: cell for key, cell in cells.items() if key not in TUNED}


def _baselines(
    layout: Layout, summary: Summary
) -> dict[tuple[Cell, ...], list[dict[str, MeanAndError]]]:
    place = layout.groups.index("sobolev")
    found: dict[tuple[Cell, ...], list[dict[str, MeanAndError]]] = {}
    for group, estimates in summary.items():
        if group[place] == BASELINE:
            found.setdefault(tuple(_case(layout, group).values()), []).append(estimates)
    return found


def _curve(
    layout: Layout,
    baselines: dict[tuple[Cell, ...], list[dict[str, MeanAndError]]],
    case: dict[str, Cell],
    measure: str,
) -> list[Point]:
    """Return the baseline's means over the fraction, where all else is as in the case."""
    names = [key for key in layout.groups if key not in TUNED]
    if "fraction" not in names:
        return []
    place = names.index("fraction")
    rest = [cell for key, cell in case.items() if key != "fraction"]
    return sorted(
        (float(cells[place]), estimates[0][measure].mean)
        for cells, estimates in baselines.items()
        if [*cells[:place], *cells[place + 1 :]] == rest and len(estimates) == 1
    )
