"""Accuracy and nearness to the true gradient over the steps of one run."""

import re
from collections.abc import Mapping
from pathlib import Path

from lightning_sobolev.tasks.finished import FinishedRun
from lightning_sobolev.tasks.history import CURVES, read_curves

_PROBED = re.compile(r"val/cut_(\d+)/(gradient_cosine|norm_ratio|value_nmse)")


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
    """Draw the curves of a run over its steps.

    Args:
        folder: The folder of the run, with its ``curves.csv``.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    curves = read_curves(folder / CURVES)
    panels = {"accuracy": {"validation": curves.get("val/accuracy", [])}}
    for key, entries in sorted(curves.items()):
        if (found := _PROBED.fullmatch(key)) is not None:
            panels.setdefault(found[2], {})[f"cut {found[1]}"] = entries
    figure = Figure(figsize=(4.0 * len(panels), 3.4), layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for label, entries in lines.items():
            axes.plot([e[0] for e in entries], [e[2] for e in entries], marker=".", label=label)
        axes.set(xlabel="step", title=title.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path = folder / "probes.png"
    figure.savefig(path, dpi=120)
    return path
