"""Pictures of one run: its curves, and what teacher and student look at."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lightning_sobolev._types import Jet
from lightning_sobolev.experiments.distillation.module import DistillationModule, log_softmax
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.experiments.run.history import CURVES, read_curves
from lightning_sobolev.functional.derivatives import tape_jet


def save_curves(folder: Path) -> Path | None:
    """Draw every logged curve over steps and over seconds into ``curves.png``.

    Args:
        folder: The folder of a run, with its ``curves.csv``.

    Returns:
        The picture's path, or None when nothing was logged.
    """
    from matplotlib.figure import Figure

    curves = read_curves(folder / CURVES) if (folder / CURVES).is_file() else {}
    if not curves:
        return None
    figure = Figure(figsize=(10, 4), layout="constrained")
    for column, (axes, label) in enumerate(zip(figure.subplots(1, 2), ("step", "s"), strict=True)):
        for key, entries in sorted(curves.items()):
            positive = [entry for entry in entries if entry[2] > 0]
            marker = "." if len(positive) == 1 else ""
            axes.plot(
                [entry[column] for entry in positive],
                [entry[2] for entry in positive],
                label=key,
                marker=marker,
                linewidth=1.2,
            )
        axes.set(xlabel=label, yscale="log")
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = folder / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def saliency(
    module: DistillationModule, x: Tensor
) -> tuple[Float[Tensor, "batch *in"], Float[Tensor, "batch *in"]]:
    """Return the input gradients of teacher and student for the teacher's likeliest action.

    Args:
        module: A distillation module with a teacher.
        x: States as the batch holds them.

    Raises:
        ValueError: If the module has no teacher.
    """
    if module.teacher is None:
        raise ValueError("module must have a teacher to compare with, got teacher=None")
    states = module.scaled(x)
    teacher = module.teacher.at(states, log_softmax)
    likeliest = teacher.value.argmax(-1)
    student = tape_jet(lambda point: log_softmax(module.net(point)), states)
    return gradient_of(teacher, likeliest), gradient_of(student, likeliest)


def gradient_of(jet: Jet, outputs: Int[Tensor, " batch"]) -> Float[Tensor, "batch *in"]:
    """Return the gradient of one output of every row.

    Args:
        jet: Of a function with values ``[batch, out]``.
        outputs: Numbers of the outputs.
    """
    cotangents = torch.nn.functional.one_hot(outputs, jet.value.shape[-1]).to(jet.value)
    return jet.vjp(cotangents[None])[0]


def overlay(
    picture: UInt8[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], limit: float
) -> UInt8[Tensor, "*shape 3"]:
    """Lay a gradient over gray pictures: red raises, blue lowers, in proportion to its size.

    Args:
        picture: Gray values.
        gradient: Numbers of any scale.
        limit: The size from which a pixel is covered completely; positive.

    Returns:
        Red, green and blue values.
    """
    signed = (gradient / limit).clamp(-1.0, 1.0)
    gray = (1 - signed.abs()) * picture
    color = [gray + 255 * signed.clamp(min=0), gray, gray - 255 * signed.clamp(max=0)]
    return torch.stack(color, dim=-1).round().to(torch.uint8)


class SaliencyPicture:
    """Draw input gradients of teacher and student over test states into ``saliency.png``.

    Red pixels raise the log-probability of the teacher's likeliest action, blue ones lower it;
    gradients are summed over the stacked pictures, one scale for each state.

    Args:
        num_states: States side by side, evenly spaced over the test states.
        enabled: Whether to draw at all.
    """

    def __init__(self, num_states: int = 6, enabled: bool = True) -> None:
        self.num_states = num_states
        self.enabled = enabled

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Draw; add no number."""
        if self.enabled and isinstance(run.module, DistillationModule):
            run.module.eval()
            x = _evenly_spaced(run, self.num_states).to(run.module.device)
            gradients = [rows.sum(1).cpu() for rows in saliency(run.module, x)]
            _draw(x[:, -1].cpu(), gradients, run.folder / "saliency.png")
        return {}


def _evenly_spaced(run: FinishedRun, count: int) -> Tensor:
    loader = run.datamodule.test_dataloader()
    stride = max(len(loader) // count, 1)
    batches = [batch["x"] for batch in islice(loader, 0, stride * count, stride)]
    if len(batches) >= count:
        return torch.stack([x[0] for x in batches[:count]])
    x = torch.cat(batches)
    return x[torch.linspace(0, len(x) - 1, count).long()]


def _draw(frames: Tensor, gradients: list[Tensor], path: Path) -> None:
    from matplotlib.figure import Figure

    count = len(frames)
    figure = Figure(figsize=(1.9 * count, 4.2), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False)
    for row, (name, maps) in enumerate(zip(("teacher", "student"), gradients, strict=True)):
        for column in range(count):
            axes = grid[row][column]
            # The teacher's scale in both rows: a student that looks flat is flat.
            limit = float(gradients[0][column].abs().quantile(0.995)) or 1.0
            axes.imshow(overlay(frames[column], maps[column], limit).numpy())
            axes.set(xticks=[], yticks=[])
        grid[row][0].set_ylabel(name)
    figure.savefig(path, dpi=120)
