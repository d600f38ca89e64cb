"""What teacher and student look at: gradients of log-probabilities in the pixels."""

from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_sobolev._files import whole
from lightning_sobolev._types import Jet
from lightning_sobolev.experiments.distillation.module import (
    DistillationModule,
    distillation,
    log_softmax,
)
from lightning_sobolev.functional.derivatives import tape_jet


def saliency(module: DistillationModule, x: Tensor) -> list[Float[Tensor, "batch *in"]]:
    """Return the input gradients of teacher and student for the teacher's greedy action."""
    if module.teacher is None:
        raise ValueError("module must have a teacher to compare with, got teacher=None")
    states = module.scaled(x)
    teacher = module.teacher.at(states, log_softmax)
    student = tape_jet(lambda point: log_softmax(module.net(point)), states)
    return [gradient_of(jet, teacher.value.argmax(-1)) for jet in (teacher, student)]


def gradient_of(jet: Jet, outputs: Int[Tensor, " batch"]) -> Float[Tensor, "batch *in"]:
    """Return the gradient of one output of every row; the jet's values are ``[batch, out]``."""
    cotangents = torch.nn.functional.one_hot(outputs, jet.value.shape[-1]).to(jet.value)
    return jet.vjp(cotangents[None])[0]


def overlay(
    frame: UInt8[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], limit: float
) -> UInt8[Tensor, "*shape 3"]:
    """Lay a gradient over gray frames: red raises, blue lowers; at the limit it covers all."""
    signed = (gradient / limit).clamp(-1.0, 1.0)
    gray = (1 - signed.abs()) * frame
    color = [gray + 255 * signed.clamp(min=0), gray, gray - 255 * signed.clamp(max=0)]
    return torch.stack(color, dim=-1).round().to(torch.uint8)


class SaliencyFigure(pl.Callback):
    """Draw input gradients of teacher and student over test states into ``saliency.png``.

    Red pixels raise the log-probability of the teacher's greedy action, blue ones lower it;
    gradients are summed over the stacked frames, one scale for each state.

    Args:
        num_states: States side by side, evenly spaced over the test states.
        enabled: Whether to draw at all.
    """

    def __init__(self, num_states: int = 6, enabled: bool = True) -> None:
        self.num_states, self.enabled = num_states, enabled

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if self.enabled:
            module = distillation(pl_module)
            x = _evenly_spaced(trainer.test_dataloaders, self.num_states).to(module.device)
            gradients = [rows.sum(1).cpu() for rows in saliency(module, x)]
            with whole(Path(trainer.default_root_dir) / "saliency.png") as path:
                _draw(x[:, -1].cpu(), gradients, path)


def _evenly_spaced(loader: Any, count: int) -> Tensor:
    stride = max(len(loader) // count, 1)
    x = torch.cat([batch["x"] for batch in islice(loader, 0, stride * count, stride)])
    return x[torch.linspace(0, len(x) - 1, count).long()]


def _draw(frames: Tensor, gradients: list[Tensor], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * len(frames), 4.2), layout="constrained")
    grid = figure.subplots(2, len(frames), squeeze=False)
    # The teacher's scale in both rows: a student that looks flat is flat.
    limits = [float(one.abs().quantile(0.995)) or 1.0 for one in gradients[0]]
    for name, row, maps in zip(("teacher", "student"), grid, gradients, strict=True):
        row[0].set_ylabel(name)
        for axes, *shown in zip(row, frames, maps, limits, strict=True):
            axes.imshow(overlay(*shown).numpy())
            axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=120, format="png")
