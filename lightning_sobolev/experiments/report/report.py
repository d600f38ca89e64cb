"""From many runs, or from a table of them, to tables and figures."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_sobolev.experiments.report.figures import save_figures, save_validations
from lightning_sobolev.experiments.report.runs import (
    Run,
    find_runs,
    read_table,
    tabulate,
    write_table,
)
from lightning_sobolev.experiments.report.tables import Sweep, shown, write_page
from lightning_sobolev.experiments.run.curves import CURVES

_FIT = "fit.npz"
_VALIDATION = ("measure", "step", "seconds", "value")


def report(
    source: Path,
    out: Path | None = None,
    *,
    by: Sequence[str] = (),
    name: str | None = None,
    **view: Any,
) -> list[Path]:
    """Write ``NAME.csv`` (a line a run), ``NAME.md`` (mean and standard error) and figures.

    Runs that validated more than once also give ``NAME_validations.csv`` and its figures.

    Args:
        source: A folder with finished runs, or a table that was written earlier: everything but
            the table itself is then made anew from it.
        out: Folder of the results; where the source is when None.
        by: More settings that become columns.
        name: What the files are called, instead of the name of the experiment or the table.
        **view: What is compared and drawn, see ``Sweep.of``.

    Returns:
        The files that were written.

    Raises:
        ValueError: If there are no runs, two of them differ in no column, a file is damaged, or
            ``view`` names no column.
    """
    is_table = source.suffix == ".csv"
    out = (source.parent if is_table else source) if out is None else out
    runs = [] if is_table else find_runs(source)
    name = name or (source.stem if is_table else _name_of(runs))
    table, page = source if is_table else out / f"{name}.csv", out / f"{name}.md"
    if not is_table:
        write_table(table, tabulate(runs, by))
    # Also of runs the table is the source, so that it gives the same files later.
    sweep = Sweep.of(read_table(table), **view)
    if "measure" in sweep.settings:
        return save_validations(out / name, sweep)
    write_page(page, sweep, source=f"scripts/report.py {table.name}")
    written = [page, *save_figures(out / name, sweep)]
    if is_table:
        return written
    validations = _collect_validations(out / f"{name}_validations.csv", runs, sweep)
    if validations is not None:
        written += [validations, *report(validations, out, **{**view, "x": "", "y": ()})]
    return [table, *written, *_surfaces(out / name, runs, sweep)]


def _name_of(runs: Sequence[Run]) -> str:
    names = {str(run.config.get("name", "runs")) for run in runs}
    name = names.pop() if len(names) == 1 else "runs"
    return re.sub(r"[^\w.-]", "_", name.removeprefix("distill_"))  # may be somebody else's


def _collect_validations(path: Path, runs: Sequence[Run], sweep: Sweep) -> Path | None:
    """Write a row for every validation of the runs that had more than one."""
    found = []
    for place, run in enumerate(runs):
        if (run.folder / CURVES).is_file():
            curves = read_table(run.folder / CURVES)
            keys = [key for key in curves if key.startswith("val/") and curves[key].count() > 1]
            long = curves.melt(["step", "seconds"], keys, "measure", "value").dropna(subset="value")
            about = sweep.frame[sweep.settings].iloc[[place] * len(long)]
            found.append(about.assign(**{key: [*long[key]] for key in _VALIDATION}))
    found = [rows for rows in found if len(rows)]
    if not found:
        return None
    write_table(path, pd.concat(found))
    return path


def _surfaces(stem: Path, runs: Sequence[Run], sweep: Sweep) -> list[Path]:
    """Draw the fits of one function of two inputs side by side, of the first seed of each case."""
    if not any((run.folder / _FIT).is_file() for run in runs):
        return []
    from lightning_sobolev.experiments.regression.surface import Surface, draw_surfaces

    written = []
    compared = [key for key in sweep.told if key.split(".")[0] == sweep.against[0]]
    for cells, rows in sweep.groups([key for key in sweep.told if key not in compared]):
        fits: dict[str, Surface] = {}
        for place in rows.index:
            name = ", ".join(shown(rows.loc[place, key]) for key in compared) or "fit"
            if name not in fits and (runs[place].folder / _FIT).is_file():
                fits[name] = Surface.load(runs[place].folder / _FIT)
        if fits:
            title = " ".join(map(shown, cells.values()))
            path = stem.with_name("_".join([stem.name, *title.split(), "surface"]) + ".png")
            draw_surfaces(fits, path, title=title)
            written.append(path)
    return written
