"""The table of the comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sobolev._files import write_text
from lightning_sobolev.experiments.report.records import Record
from lightning_sobolev.experiments.report.tables import MeanAndError, line_of

_SIGNS = {"time": "> {limit:g} s", "memory": "memory", "failed": "failed", "not tried": "not tried"}


def write_table(path: Path, records: Sequence[Record], cfg: Any) -> Path:
    """Write one table a function: the error and, in brackets, the seconds of the fit.

    Args:
        path: The Markdown file.
        records: One a fit.
        cfg: Has ``limit_seconds``, ``limit_gib`` and ``budget_seconds``.

    Returns:
        The file.
    """
    lines = [
        "# peers",
        "",
        "Test RMSE in deviations of the function over the test points (1: their mean), "
        "mean ± standard error over seeds, and in brackets processor seconds of the fit on one "
        "core; made by `scripts/peers.py`. "
        f"Limits: {cfg.limit_seconds:g} s and {cfg.limit_gib:g} GiB a fit. "
        f"L-BFGS ends after {cfg.budget_seconds:g} s; `order1_jenn_time` after JENN's own time. "
        "Not tried: the method, or JENN for its time, did not finish with as many points or fewer; "
        "empty: not measured.",
    ]
    methods = list(dict.fromkeys(str(record["method"]) for record in records))
    for function in dict.fromkeys(str(record["function"]) for record in records):
        header = ["inputs", "points", *methods]
        lines += ["", f"## {function}", "", line_of(header), line_of(["---"] * len(header))]
        of_function = [record for record in records if record["function"] == function]
        keys = sorted({(float(r["dim"]), float(r["points"])) for r in of_function})
        for dim, points in keys:
            cell = [r for r in of_function if (r["dim"], r["points"]) == (dim, points)]
            shown = [_shown([r for r in cell if r["method"] == method]) for method in methods]
            lines.append(line_of([f"{dim:g}", f"{points:,.0f}", *shown]))
    lines += ["", *_predictions(records, methods)]
    write_text(path, "\n".join(lines) + "\n")
    return path


def _shown(records: Sequence[Record]) -> str:
    if not records:
        return ""
    fitted = [record for record in records if record["outcome"] == "fitted"]
    if not fitted:
        first = records[0]
        return _SIGNS[str(first["outcome"])].format(limit=float(first["limit_seconds"]))
    error = MeanAndError.of([float(record["rmse"]) for record in fitted])
    seconds = MeanAndError.of([float(record["fit_seconds"]) for record in fitted])
    return f"{error} ({seconds.mean:.2g})"


def _predictions(records: Sequence[Record], methods: Sequence[str]) -> list[str]:
    """Return a table of the time of predicting by method and number of training points."""
    sizes = sorted({float(record["points"]) for record in records})
    header = ["method", *(f"{size:,.0f} points" for size in sizes)]
    lines = [
        "## Predicting 2,000 points",
        "",
        "Processor milliseconds, mean over functions, numbers of inputs and seeds.",
        "",
        line_of(header),
        line_of(["---"] * len(header)),
    ]
    for method in methods:
        cells = []
        for size in sizes:
            times = [
                1000 * float(record["predict_seconds"])
                for record in records
                if (record["method"], record["points"]) == (method, size)
            ]
            mean = MeanAndError.of(times)
            cells.append(f"{mean.mean:.3g}" if mean.count else "")
        lines.append(line_of([method, *cells]))
    return lines
