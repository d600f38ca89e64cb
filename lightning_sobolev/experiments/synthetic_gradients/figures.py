"""Accuracy and nearness to the true gradient over the steps of a run."""

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd

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

    def on_test_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Draw the validations that the run has logged."""
        from lightning_sobolev.experiments.common import figures

        folder = Path(trainer.default_root_dir)
        if not self.enabled or not (folder / CURVES).is_file():
            return
        curves = pd.read_csv(folder / CURVES, index_col="step")
        panels = {"validation accuracy": {"network": "val/accuracy"}}
        for key in sorted(curves):
            if (found := _PROBED.fullmatch(key)) is not None:
                panels.setdefault(_LABELS[found[2]], {})[f"cut {found[1]}"] = key
        figure = figures.blank(4.0 * len(panels), 3.4)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, lines) in zip(grid, panels.items(), strict=True):
            for label, key in lines.items():
                curves[key].dropna().plot(ax=axes, marker=".", label=label)
            axes.set(xlabel="step", ylabel=name)
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
        figures.save(figure, folder / "probes.png")
