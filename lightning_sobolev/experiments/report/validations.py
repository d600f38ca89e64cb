"""How validation went in many runs, over steps and over wall time."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.figures import telling_apart
from lightning_sobolev.experiments.report.records import Cell, Record, StoredRun, write_csv
from lightning_sobolev.experiments.run.history import CURVES, read_curves
from lightning_sobolev.experiments.synthetic_gradients.figures import draw_kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ENTRIES = ("measure", "step", "seconds", "value")


def save_validations(out: Path, layout: Layout, runs: Sequence[StoredRun]) -> list[Path]:
    """Write ``NAME_validations.csv``, a line for every validation, and a figure of it.

    Args:
        out: Folder of the results.
        layout: Names the table and tells runs apart.
        runs: Finished runs; those that validated less than twice are left out.

    Returns:
        The files; none where no run validated twice.
    """
    records = [record for run in runs for record in _validations(layout, run)]
    if not records:
        return []
    table = out / f"{layout.name}_validations.csv"
    write_csv(table, [*layout.keys, *_ENTRIES], records)
    if find_spec("matplotlib") is None:
        return [table]
    draw = draw_kinds if "kind" in layout.keys else _draw
    return [table, draw(out / f"{layout.name}_validations.png", layout, records)]


def _validations(layout: Layout, run: StoredRun) -> list[Record]:
    path = run.folder / CURVES
    curves = read_curves(path) if path.is_file() else {}
    about = {key: layout.record(run)[key] for key in layout.keys}
    return [
        {**about, "measure": measure, "step": step, "seconds": seconds, "value": value}
        for measure, entries in curves.items()
        if measure.startswith("val/") and len(entries) > 1
        for step, seconds, value in entries
    ]


def _draw(path: Path, layout: Layout, records: Sequence[Record]) -> Path:
    """Draw a line for every run, runs that differ in their seed alone in one color."""
    from matplotlib.figure import Figure

    measure = records[0]["measure"]
    lines: dict[tuple[Cell, ...], list[Record]] = {}
    for record in records:
        if record["measure"] == measure:
            lines.setdefault(tuple(record[key] for key in layout.keys), []).append(record)
    groups = {tuple(run[0][key] for key in layout.groups) for run in lines.values()}
    varies = telling_apart(layout, groups)
    figure, colors = Figure(figsize=(11.0, 3.6), layout="constrained"), dict[str, str]()
    for axes, unit in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for run in lines.values():
            label = ", ".join(str(run[0][key]) for key in varies)
            first = label not in axes.get_legend_handles_labels()[1]
            (line,) = axes.plot(
                [entry[unit] for entry in run],
                [entry["value"] for entry in run],
                color=colors.get(label, f"C{len(colors)}"),
                linewidth=1.0,
                label=label if first else None,
            )
            colors.setdefault(label, str(line.get_color()))
        axes.set(xlabel=unit, title=str(measure), xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    if varies:
        _add_legend(figure, ", ".join(varies))
    figure.savefig(path, dpi=120)
    return path


def _add_legend(figure: "Figure", title: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # beside the curves: with many groups it would lie on them
    figure.legend(handles, labels, fontsize="small", title=title, loc="outside right upper")
