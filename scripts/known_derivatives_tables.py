"""Print the tables of docs/known-derivatives.md from what known_derivatives.py measured.

python scripts/known_derivatives_tables.py docs/results/balance.csv
python scripts/known_derivatives_tables.py docs/results/noise.csv
"""

import argparse
import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sobolev.tasks.tables import MeanAndError, line_of

HARMED = 1.2  # ratio of test errors, and of what HarmCheck warns of
Row = Mapping[str, Any]
Key = tuple[str | float, ...]
SIGNS: Mapping[str, Callable[[Row, Row], bool]] = {
    "twin: validation error above 1.2 times its own": lambda run, plain: (
        run["validation_mse"] > HARMED * plain["validation_mse"]
    ),
    "validation error above 1.5 times its least": lambda run, _: run["validation_rise"] > 1.5,
    "gradients disagree, first half": lambda run, _: run["early_cosine"] < 0.0,
    "gradients disagree, second half": lambda run, _: run["late_cosine"] < 0.0,
}


def read(path: Path) -> list[Row]:
    """Return the runs; what is a number becomes one."""
    words = ("function", "method")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v if k in words else float(v) for k, v in row.items()} for row in rows]


def paired(rows: Iterable[Row]) -> list[tuple[Row, Row]]:
    """Return every run with derivatives beside the plain run on the same points."""
    listed = list(rows)
    plain = {_place(row): row for row in listed if row["method"] == "none"}
    return [(row, plain[_place(row)]) for row in listed if row["method"] != "none"]


def _place(row: Row) -> Key:
    return row["function"], row["num_points"], row["seed"]


def errors(rows: list[Row], measure: str) -> list[str]:
    """Return a table: a line for every function and size, a column for every method and noise."""
    cases = list(dict.fromkeys((row["method"], row["noise"]) for row in rows))
    names = [str(m) if not any(c[1] for c in cases) else f"{m}, {n:g}" for m, n in cases]
    lines = [line_of(["function", "points", *names]), line_of(["---"] * (2 + len(cases)))]
    for function, size in dict.fromkeys((row["function"], row["num_points"]) for row in rows):
        cells = []
        for case in cases:
            found = [
                float(row[measure])
                for row in rows
                if (row["function"], row["num_points"], row["method"], row["noise"])
                == (function, size, *case)
            ]
            cells.append(str(MeanAndError.of(found)))
        lines.append(line_of([str(function), f"{size:g}", *cells]))
    return [*lines, _ratios(rows, measure, cases)]


def _ratios(rows: list[Row], measure: str, cases: Sequence[Key]) -> str:
    """Return the geometric mean over all runs of the error divided by the plain run's."""
    cells = []
    for case in cases:
        logs = [
            math.log(float(run[measure]) / float(plain[measure]))
            for run, plain in paired(rows)
            if (run["method"], run["noise"]) == case
        ]
        cells.append(f"{math.exp(math.fsum(logs) / len(logs)):.2f}" if logs else "1")
    return line_of(["*ratio, geometric mean*", "", *cells])


def signs(rows: list[Row]) -> list[str]:
    """Return how often each sign of harm is right, over all runs with derivatives."""
    pairs = paired(rows)
    ratio = [float(a["test_value_nmse"]) / float(b["test_value_nmse"]) for a, b in pairs]
    harmed = [pair for pair, r in zip(pairs, ratio, strict=True) if r > HARMED]
    helped = [pair for pair, r in zip(pairs, ratio, strict=True) if r < 1.0]
    alone = [(row, row) for row in rows if row["method"] == "none"]
    header = ["sign", "harm detected", "false alarms", "seen without derivatives"]
    lines = [line_of(header), line_of(["---"] * 4)]
    for name, is_sign in SIGNS.items():
        groups = (harmed, helped, alone)
        counts = [sum(is_sign(*pair) for pair in group) for group in groups]
        shares = [f"{n} of {len(group)}" for n, group in zip(counts, groups, strict=True)]
        lines.append(line_of([name, *shares]))
    return lines


def main() -> None:
    """Print what a table of runs says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    rows = read(parser.parse_args().table)
    for measure in ("test_value_nmse", "test_derivative_nmse"):
        print(f"\n{measure}\n", *errors(rows, measure), sep="\n")
    for size in dict.fromkeys(row["num_points"] for row in rows):
        print(f"\nsigns of harm, {size:g} points\n")
        print(*signs([row for row in rows if row["num_points"] == size]), sep="\n")


if __name__ == "__main__":
    main()
