"""Mean and standard error over seeds, and the Markdown table that shows them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.records import Cell, Record


@dataclass(frozen=True, slots=True)
class MeanAndError:
    """Mean of some runs.

    Args:
        mean: Mean over the runs that have a number.
        error: Standard error of the mean; NaN for fewer than two runs.
        count: Runs that have a number.
    """

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanAndError":
        """Average values; NaN entries are left out."""
        known = [value for value in values if not math.isnan(value)]
        count = len(known)
        if count == 0:
            return cls(math.nan, math.nan, 0)
        mean = math.fsum(known) / count
        if count == 1:
            return cls(mean, math.nan, 1)
        variance = math.fsum((value - mean) ** 2 for value in known) / (count - 1)
        return cls(mean, math.sqrt(variance / count), count)

    def __str__(self) -> str:
        if self.count == 0:
            return ""
        if math.isnan(self.error):
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} ± {self.error:.2g}"


Group = tuple[Cell, ...]
Summary = dict[Group, dict[str, MeanAndError]]


def summarize(layout: Layout, records: Sequence[Record]) -> Summary:
    """Average the measures over the runs that differ by their seed alone.

    Args:
        layout: Says which columns make a group.
        records: One a run.

    Returns:
        For every group, in the order of its key columns, an estimate of every measure.
    """
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in layout.groups), []).append(record)
    ordered = sorted(groups, key=lambda group: [_sortable(cell) for cell in group])
    return {
        group: {
            measure: MeanAndError.of([float(record[measure]) for record in groups[group]])
            for measure in layout.measures
        }
        for group in ordered
    }


def _sortable(cell: Cell) -> tuple[float, str]:
    return (-math.inf, cell) if isinstance(cell, str) else (float(cell), "")


def write_markdown(
    path: Path, layout: Layout, summary: Summary, *, source: str, more: Sequence[str] = ()
) -> None:
    """Write the averages as a table, whole or not at all.

    Args:
        path: The file.
        layout: The form of the table of runs.
        summary: The averages.
        source: The table of runs from which they were made, and how.
        more: Lines that follow.
    """
    constant = [key for i, key in enumerate(layout.groups) if len({g[i] for g in summary}) == 1]
    shown = [i for i, key in enumerate(layout.groups) if key not in constant]
    header = [layout.groups[i] for i in shown] + ["runs", *layout.measures]
    lines = [f"# {layout.name}", "", f"Mean ± standard error over seeds, made by `{source}`."]
    if summary and constant:
        first = next(iter(summary))
        fixed = [f"{key} {plain(first[layout.groups.index(key)])}" for key in constant]
        lines += ["", "The same in every run: " + ", ".join(fixed) + "."]
    lines += ["", line_of(header), line_of(["---"] * len(header))]
    for group, estimates in summary.items():
        count = max(estimate.count for estimate in estimates.values())
        cells = [plain(group[i]) for i in shown] + [str(count)]
        lines += [line_of([*cells, *map(str, estimates.values())])]
    write_text(path, "\n".join([*lines, *more]) + "\n")


def line_of(cells: Sequence[str]) -> str:
    """Return cells as a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def plain(cell: Cell) -> str:
    """Return an entry as it is shown: numbers without needless digits."""
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
