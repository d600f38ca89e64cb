"""From many runs, or from a table of them, to tables and figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev.experiments.report import runs as finished
from lightning_sobolev.experiments.report.figures import save_figures, save_validations
from lightning_sobolev.experiments.report.runs import Run, read_table, write_table
from lightning_sobolev.experiments.report.tables import Sweep, shown, write_page
from lightning_sobolev.experiments.run.curves import CURVES

_FIT = "fit.npz"


def report(
    source: Path,
    out: Path | None = None,
    *,
    by: Sequence[str] = (),
    name: str | None = None,
    **view: Any,
) -> list[Path]:
    """Write ``NAME.csv`` (a line a run), ``NAME.md`` (mean and standard error) and figures.

    The source is a folder with finished runs, or a table that was written earlier: everything but
    the table itself is then made anew from it. Runs that validated more than once also give
    ``NAME_validations.csv`` and its figures. ``view`` is that of ``Sweep.of``.
    """
    if source.suffix == ".csv":
        return _report_table(source, (out or source.parent) / (name or source.stem), view)
    runs = finished.find_runs(source)
    stem = (out or source) / (name or _name_of(runs))
    table, validations = (stem.with_name(f"{stem.name}{end}.csv") for end in ("", "_validations"))
    write_table(table, finished.tabulate(runs, by))
    # The table is the source of all else, so that it gives the same files later.
    written = [table, *_report_table(table, stem, view)]
    sweep = Sweep.of(read_table(table), **view)
    rows = _validations(runs, sweep)
    if len(rows):
        write_table(validations, rows)
        written += [validations, *report(validations, **{**view, "x": "", "y": ()})]
    return [*written, *_surfaces(stem, runs, sweep)]


def _report_table(table: Path, stem: Path, view: dict[str, Any]) -> list[Path]:
    sweep = Sweep.of(read_table(table), **view)
    if "measure" in sweep.settings:
        return save_validations(stem, sweep)
    page = stem.with_name(f"{stem.name}.md")
    write_page(page, sweep, source=f"scripts/report.py {table.name}")
    return [page, *save_figures(stem, sweep)]


def _name_of(runs: Sequence[Run]) -> str:
    names = {str(run.config.get("name", "runs")) for run in runs}
    name = names.pop() if len(names) == 1 else "runs"
    return re.sub(r"[^\w.-]", "_", name.removeprefix("distill_"))  # may be somebody else's


def _validations(runs: Sequence[Run], sweep: Sweep) -> pd.DataFrame:
    """Return a row for every validation of the runs that had more than one."""
    found = [pd.DataFrame()]
    for place, run in enumerate(runs):
        if (run.folder / CURVES).is_file():
            curves = read_table(run.folder / CURVES)
            keys = [key for key in curves if key.startswith("val/") and curves[key].count() > 1]
            long = curves.melt(["step", "seconds"], keys, "measure", "value").dropna(subset="value")
            about = sweep.frame.loc[[place], sweep.settings]
            found.append(about.merge(long[["measure", "step", "seconds", "value"]], how="cross"))
    return pd.concat([rows for rows in found if len(rows)] or found)


def _surfaces(stem: Path, runs: Sequence[Run], sweep: Sweep) -> list[Path]:
    """Draw the fits of one function of two inputs side by side, of the first seed of each case."""
    fitted = [place for place, run in enumerate(runs) if (run.folder / _FIT).is_file()]
    if not fitted:
        return []
    from lightning_sobolev.experiments.regression.surface import Surface, draw_surfaces

    cases = sweep.frame.loc[fitted, sweep.told].map(shown)
    compared = [key for key in sweep.told if key.split(".")[0] == sweep.against[0]]
    lines = cases[compared].agg(", ".join, axis=1) if compared else cases.assign(fit="fit")["fit"]
    titles = [" ".join(row) for row in cases.drop(columns=compared).to_numpy()]
    written = []
    for title, rows in lines.groupby(titles):
        first = rows.drop_duplicates()
        fits = {line: Surface.load(runs[place].folder / _FIT) for place, line in first.items()}
        path = stem.with_name("_".join([stem.name, *str(title).split(), "surface"]) + ".png")
        draw_surfaces(fits, path, title=title)
        written.append(path)
    return written
