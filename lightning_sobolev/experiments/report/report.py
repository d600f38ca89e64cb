"""From many runs, or from a table of them, to tables and figures."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from lightning_sobolev.experiments.regression.surface import FIT, Surface, draw_surfaces
from lightning_sobolev.experiments.report.curves import CURVES
from lightning_sobolev.experiments.report.figures import save_figures, save_validations
from lightning_sobolev.experiments.report.runs import (
    Run,
    find_runs,
    read_table,
    tabulate,
    write_table,
)
from lightning_sobolev.experiments.report.tables import Sweep, View, groups, shown, write_page


def report(
    source: Path,
    out: Path | None = None,
    *,
    by: Sequence[str] = (),
    name: str | None = None,
    view: View | None = None,
) -> list[Path]:
    """Write ``NAME.csv`` (a line a run), ``NAME.md`` (mean and standard error) and figures.

    Runs that validated more than once also give ``NAME_validations.csv`` and its figures.

    Args:
        source: A folder with finished runs, or a table that was written earlier: everything but
            the table itself is then made anew from it.
        out: Folder of the results; where the source is when None.
        by: More settings that become columns.
        name: What the files are called, instead of the name of the experiment or the table.
        view: What is compared and drawn.

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
    sweep = Sweep.of(read_table(table), view)
    write_page(page, sweep, source=f"scripts/report.py {table.name}")
    written = [page, *save_figures(out / name, sweep)]
    if not is_table:
        written = [table, *written, *_validations(out / f"{name}_validations", runs, sweep)]
        written += _surfaces(out / name, runs, sweep)
    return written


def _name_of(runs: Sequence[Run]) -> str:
    names = {str(run.config.get("name", "runs")) for run in runs}
    name = names.pop() if len(names) == 1 else "runs"
    return re.sub(r"[^\w.-]", "_", name.removeprefix("distill_"))  # may be somebody else's


def _validations(stem: Path, runs: Sequence[Run], sweep: Sweep) -> list[Path]:
    """Collect the validations of the runs that had more than one."""
    found = []
    for place, run in enumerate(runs):
        if (run.folder / CURVES).is_file():
            curves = read_table(run.folder / CURVES)
            keys = [key for key in curves if key.startswith("val/") and curves[key].count() > 1]
            long = curves.melt(["step", "seconds"], keys, "measure", "value").dropna(subset="value")
            about = sweep.frame[sweep.settings].iloc[[place] * len(long)].reset_index(drop=True)
            found.append(pd.concat([about, long.reset_index(drop=True)], axis=1).assign(run=place))
    long = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    if long.empty:
        return []
    path = stem.with_name(f"{stem.name}.csv")
    write_table(path, long.drop(columns="run"))
    return [path, *save_validations(stem, replace(sweep, frame=long))]


def _surfaces(stem: Path, runs: Sequence[Run], sweep: Sweep) -> list[Path]:
    """Draw the fits of one function side by side, for the first seed of each case."""
    written = []
    case = [key for key in sweep.told if key.split(".")[0] != sweep.against[0]]
    for cells, rows in groups(sweep.frame, case):
        fits: dict[str, Surface] = {}
        for place in rows.index:
            file = runs[place].folder / FIT
            choice = shown(rows.get(sweep.against[0], pd.Series("fit", rows.index))[place])
            if choice not in fits and file.is_file():
                fits[choice] = Surface.load(file)
        if fits:
            title = " ".join(shown(cell) for cell in cells.values())
            path = stem.with_name("_".join([stem.name, *title.split()]) + "_surface.png")
            draw_surfaces(fits, path, title=title)
            written.append(path)
    return written
