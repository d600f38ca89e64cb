"""The tables of a study: errors by method, and how often each sign of harm is right."""

import math
from collections.abc import Callable, Iterable, Sequence

from lightning_sobolev.tasks.records import Record
from lightning_sobolev.tasks.tables import MeanAndError, line_of

MEASURES = ("test_value_nmse", "test_derivative_nmse")
_HARMED = 1.2  # ratio of test errors, and of what HarmCheck warns of
Case = tuple[str, str, float]
"""Method, derivatives and noise."""
_SIGNS: dict[str, Callable[[Record, Record], bool]] = {
    "twin: validation error above 1.2 times its own": lambda run, plain: (
        float(run["validation_mse"]) > _HARMED * float(plain["validation_mse"])
    ),
    "validation error above 1.5 times its least": lambda run, _: (
        float(run["validation_rise"]) > 1.5
    ),
    "gradients disagree, first half": lambda run, _: float(run["early_cosine"]) < 0.0,
    "gradients disagree, second half": lambda run, _: float(run["late_cosine"]) < 0.0,
}


def case_of(record: Record) -> Case:
    """Return what a run was taught and how.

    Args:
        record: The run.
    """
    return str(record["method"]), str(record["derivatives"]), float(record["noise"])


def paired(records: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Return every run with derivatives beside the plain run on the same points.

    Args:
        records: One a run.
    """
    listed = list(records)
    plain = {_place(record): record for record in listed if record["method"] == "none"}
    return [(record, plain[_place(record)]) for record in listed if record["method"] != "none"]


def _place(record: Record) -> tuple[str | float, ...]:
    return record["function"], record["num_points"], record["seed"]


def error_lines(records: Sequence[Record], measure: str) -> list[str]:
    """Return a table: a line for every function and size, a column for every case.

    Args:
        records: One a run.
        measure: Which error.

    Returns:
        Lines of Markdown; the last is the geometric mean, over all runs, of the error divided by
        the plain run's.
    """
    cases = list(dict.fromkeys(map(case_of, records)))
    header = ["function", "points", *map(_name, cases)]
    lines = [line_of(header), line_of(["---"] * len(header))]
    for function, size in dict.fromkeys((r["function"], r["num_points"]) for r in records):
        cells = []
        for case in cases:
            found = [
                float(record[measure])
                for record in records
                if (record["function"], record["num_points"], *case_of(record))
                == (function, size, *case)
            ]
            cells.append(str(MeanAndError.of(found)))
        lines.append(line_of([str(function), f"{float(size):g}", *cells]))
    return [*lines, _ratios(records, measure, cases)]


def _name(case: Case) -> str:
    method, derivatives, noise = case
    name = method if derivatives == "exact" else f"{method}, {derivatives}"
    return f"{name}, noise {noise:g}" if noise else name


def _ratios(records: Sequence[Record], measure: str, cases: Sequence[Case]) -> str:
    cells = []
    for case in cases:
        logs = [
            math.log(float(run[measure]) / float(plain[measure]))
            for run, plain in paired(records)
            if case_of(run) == case
        ]
        cells.append(f"{math.exp(math.fsum(logs) / len(logs)):.2f}" if logs else "1")
    return line_of(["*ratio, geometric mean*", "", *cells])


def label_lines(records: Sequence[Record]) -> list[str]:
    """Return a table of how far off the derivatives are that the runs were given.

    Args:
        records: One a run.

    Returns:
        Lines of Markdown: a line for every function, a column for every kind of derivatives.
    """
    taught = [record for record in records if record["method"] != "none"]
    kinds = list(dict.fromkeys(case_of(record)[1:] for record in taught))
    header = ["function", *(d if not n else f"{d}, noise {n:g}" for d, n in kinds)]
    lines = [line_of(header), line_of(["---"] * len(header))]
    for function in dict.fromkeys(str(record["function"]) for record in taught):
        cells = []
        for kind in kinds:
            found = {  # one label for all the methods of a seed
                record["seed"]: float(record["label_nmse"])
                for record in taught
                if record["function"] == function and case_of(record)[1:] == kind
            }
            cells.append(str(MeanAndError.of(list(found.values()))))
        lines.append(line_of([function, *cells]))
    return lines


def sign_lines(records: Sequence[Record]) -> list[str]:
    """Return how often each sign of harm is right, over all runs with derivatives.

    Args:
        records: One a run.

    Returns:
        Lines of Markdown.
    """
    pairs = paired(records)
    ratio = [float(a["test_value_nmse"]) / float(b["test_value_nmse"]) for a, b in pairs]
    harmed = [pair for pair, r in zip(pairs, ratio, strict=True) if r > _HARMED]
    helped = [pair for pair, r in zip(pairs, ratio, strict=True) if r < 1.0]
    alone = [(record, record) for record in records if record["method"] == "none"]
    header = ["sign", "harm detected", "false alarms", "seen without derivatives"]
    lines = [line_of(header), line_of(["---"] * 4)]
    for name, is_sign in _SIGNS.items():
        groups = (harmed, helped, alone)
        counts = [sum(is_sign(*pair) for pair in group) for group in groups]
        shares = [f"{n} of {len(group)}" for n, group in zip(counts, groups, strict=True)]
        lines.append(line_of([name, *shares]))
    return lines
