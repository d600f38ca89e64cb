"""Accuracy and nearness to the true gradient over the steps of a run."""

import re
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.run.curves import CURVES

_LABELS = {
    "gradient_cosine": "cosine of gradients",
    "norm_ratio": "ratio of gradients' norms",
    "value_nmse": "NMSE of losses",
}
_PROBED = re.compile(rf"val/cut_(\d+)/({'|'.join(_LABELS)})")


class ProbesFigure(pl.Callback):
    """Draw accuracy and, for every cut, what its model comes to into ``probes.png``.

    Args:
        enabled: Whether to draw at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw what the run has logged."""
        del pl_module
        folder = Path(trainer.default_root_dir)
        if self.enabled and (folder / CURVES).is_file():
            draw_probes(pd.read_csv(folder / CURVES, index_col="step"), folder / "probes.png")


def draw_probes(curves: pd.DataFrame, path: Path) -> None:
    """Draw the validations of a run over its steps.

    Args:
        curves: A column for every logged key, by step.
        path: The figure.
    """
    from matplotlib.figure import Figure

    panels = {"validation accuracy": {"network": "val/accuracy"}}
    for key in sorted(curves):
        if (found := _PROBED.fullmatch(key)) is not None:
            panels.setdefault(_LABELS[found[2]], {})[f"cut {found[1]}"] = key
    figure = Figure(figsize=(4.0 * len(panels), 3.4), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, lines) in zip(grid, panels.items(), strict=True):
        for label, key in lines.items():
            curves[key].dropna().plot(ax=axes, marker=".", label=label)
        axes.set(xlabel="step", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    with whole(path) as writing:
        figure.savefig(writing, dpi=120, format="png")
