"""From many runs, or from a table of them, to tables and figures."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from lightning_sobolev.experiments.band_limits.profile import draw_bands
from lightning_sobolev.experiments.regression.surface import FIT, Surface, draw_surfaces
from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.comparison import TUNED, compare, comparison_lines
from lightning_sobolev.experiments.report.figures import save_figures
from lightning_sobolev.experiments.report.layouts import (
    BAND_LIMITS,
    layout_of_runs,
    layout_of_table,
)
from lightning_sobolev.experiments.report.records import (
    Cell,
    Record,
    StoredRun,
    find_runs,
    read_csv,
    write_csv,
)
from lightning_sobolev.experiments.report.tables import summarize, write_markdown
from lightning_sobolev.experiments.report.validations import save_validations

log = logging.getLogger(__name__)


def report(
    source: Path, out: Path | None = None, *, by: Sequence[str] = (), name: str | None = None
) -> list[Path]:
    """Write ``NAME.csv`` (a line a run), ``NAME.md`` (mean and standard error) and figures.

    Runs that validated more than once also give ``NAME_validations.csv`` and its figure.

    Args:
        source: A folder with finished runs, or a table that was written earlier: everything but
            the table itself is then made anew from it.
        out: Folder of the results; where the source is when None.
        by: More settings that tell runs apart, as key paths in the configuration.
        name: What the files are called, instead of the name of the game or the experiment.

    Returns:
        The files that were written.

    Raises:
        ValueError: If there are no runs, or two of them differ in no column.
    """
    written: list[Path] = []
    if source.suffix == ".csv":
        columns, records = read_csv(source)
        layout = layout_of_table(source, columns)
        out = source.parent if out is None else out
    else:
        out = source if out is None else out
        layout, written = _tabulate(source, out, by, name)
        # From here on the table is the source, so that it gives the same files later.
        records = read_csv(written[0])[1]
    summary = summarize(layout, records)
    markdown = out / f"{layout.name}.md"
    source_of = f"scripts/report.py {layout.name}.csv"
    ratios = comparison_lines(compare(layout, summary))
    write_markdown(markdown, layout, summary, source=source_of, more=ratios)
    written.append(markdown)
    if find_spec("matplotlib") is None:
        log.warning("figures are left out: matplotlib is missing, install the extra 'viz'")
        return written
    if layout.keys.keys() == BAND_LIMITS.keys.keys():
        return [*written, draw_bands(out / f"{layout.name}.png", summary)]
    return written + save_figures(out, layout, summary)


def _tabulate(
    source: Path, out: Path, by: Sequence[str], name: str | None
) -> tuple[Layout, list[Path]]:
    runs = find_runs(source)
    layout = layout_of_runs(runs).with_keys(by)
    layout = layout if name is None else replace(layout, name=name)
    records = [layout.record(run) for run in runs]
    _check_distinct(layout, records, runs)
    table = out / f"{layout.name}.csv"
    write_csv(table, layout.columns, records)
    return layout, [table, *_surfaces(out, layout, runs), *save_validations(out, layout, runs)]


def _check_distinct(layout: Layout, records: Sequence[Record], runs: Sequence[StoredRun]) -> None:
    seen: dict[tuple[object, ...], StoredRun] = {}
    for record, run in zip(records, runs, strict=True):
        key = tuple(record[column] for column in layout.keys)
        if key in seen:
            raise ValueError(
                f"runs must differ in one of {', '.join(layout.keys)}, got the same in "
                f"{seen[key].folder} and {run.folder}: name with --by what tells them apart, "
                "e.g. --by lr, or delete one"
            )
        seen[key] = run


def _surfaces(out: Path, layout: Layout, runs: Sequence[StoredRun]) -> list[Path]:
    """Draw plain and Sobolev fits of one function side by side, for the first seed of each case."""
    cases: dict[tuple[Cell, ...], dict[str, StoredRun]] = {}
    for run in runs:
        if (run.folder / FIT).is_file():
            record = layout.record(run)
            case = tuple(record[key] for key in layout.groups if key not in TUNED)
            cases.setdefault(case, {}).setdefault(str(record["sobolev"]), run)
    if find_spec("matplotlib") is None:
        return []
    written = []
    for case, fits in cases.items():
        label = "_".join(str(part) for part in case if part != "")
        path = out / f"{layout.name}_{label}.png"
        surfaces = {choice: Surface.load(run.folder / FIT) for choice, run in fits.items()}
        draw_surfaces(surfaces, path, title=label.replace("_", " "))
        written.append(path)
    return written
