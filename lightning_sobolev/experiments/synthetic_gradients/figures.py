"""Accuracy and nearness to the true gradient over the steps of a run, or of many."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sobolev.experiments.report.columns import Layout
from lightning_sobolev.experiments.report.records import Record
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.run.history import CURVES, read_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PROBED = re.compile(r"val/cut_(\d+)/(gradient_cosine|norm_ratio|value_nmse)")
_ACCURACY = "val/accuracy"


class ProbePicture:
    """Draw accuracy and, for every cut, what its model comes to into ``probes.png``.

    Args:
        enabled: Whether to draw at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Draw; add no number."""
        if self.enabled and (run.folder / CURVES).is_file():
            draw_probes(run.folder)
        return {}


def draw_probes(folder: Path) -> Path:
    """Draw the validations of a run over its steps.

    Args:
        folder: The folder of the run, with its ``curves.csv``.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    curves = read_curves(folder / CURVES)
    panels = {"accuracy": {"validation": curves.get(_ACCURACY, [])}}
    for key, entries in sorted(curves.items()):
        if (found := _PROBED.fullmatch(key)) is not None:
            panels.setdefault(found[2].replace("_", " "), {})[f"cut {found[1]}"] = entries
    figure = Figure(figsize=(4.0 * len(panels), 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for label, entries in lines.items():
            axes.plot([e[0] for e in entries], [e[2] for e in entries], marker=".", label=label)
        _finish(axes, title)
        axes.legend(fontsize="small")
    path = folder / "probes.png"
    figure.savefig(path, dpi=120)
    return path


def draw_kinds(path: Path, layout: Layout, records: Sequence[Record]) -> Path:
    """Draw the validations of many runs, the kinds of training beside each other.

    A row of panels for every network, data set, number of cuts and activation of the models:
    accuracy, then the cosine between synthetic and true gradient at each cut. Lines are means over
    seeds.

    Args:
        path: The picture.
        layout: The form of the table of runs.
        records: A validation each.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    del layout
    rows = sorted({_row(record) for record in records})
    kinds = sorted({str(record["kind"]) for record in records})
    columns = 1 + max(cuts for *_, cuts, _ in rows)
    figure = Figure(figsize=(3.6 * columns, 3.2 * len(rows)), layout="constrained")
    for axes_row, about in zip(
        figure.subplots(len(rows), columns, squeeze=False), rows, strict=True
    ):
        chosen = [record for record in records if _row(record) == about]
        title = "{}, {}, {} cut(s), {}".format(*about)
        cuts = range(1, about[2] + 1)
        measures = [_ACCURACY, *(f"val/cut_{cut}/gradient_cosine" for cut in cuts)]
        for axes, measure in zip(axes_row, measures, strict=False):
            for kind, line in _means(chosen, measure).items():
                color = f"C{kinds.index(kind)}"
                axes.plot(list(line), list(line.values()), label=kind, color=color)
            _finish(axes, f"{title}:\n{measure.removeprefix('val/')}")
        for axes in axes_row[len(measures) :]:
            axes.set_axis_off()
        axes_row[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _means(records: Sequence[Record], measure: str) -> dict[str, dict[float, float]]:
    """Average over seeds, by kind."""
    lines: dict[str, dict[float, list[float]]] = {}
    for record in records:
        line = lines.setdefault(str(record["kind"]), {})
        if record["measure"] == measure:
            line.setdefault(float(record["step"]), []).append(float(record["value"]))
    return {
        kind: {step: math.fsum(values) / len(values) for step, values in sorted(line.items())}
        for kind, line in sorted(lines.items())
    }


def _row(record: Record) -> tuple[str, str, int, str]:
    cuts, activation = int(float(record["cuts"])), str(record["activation"])
    return str(record["network"]), str(record["data"]), cuts, activation


def _finish(axes: "Axes", title: str) -> None:
    axes.set(xlabel="step")
    axes.set_title(title, fontsize="medium")
    axes.grid(alpha=0.3)
