"""Figures of a classifier's sensitivity: vulnerable images, maps of pixels, adversarial images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_sobolev.experiments.common import figures
from lightning_sobolev.experiments.sensitivity.attacks import Examples

_SHOWN = 8


class _Row(NamedTuple):
    label: str
    images: Tensor
    unit: str | None = None  # None for images as they are
    signed: bool = False


def draw_influence(influences: Mapping[str, Examples], threshold: float, path: Path) -> None:
    """Draw the image influence with and without a threshold over the odds against the class."""
    figure = figures.blank(8.8, 4.2)
    grid = figure.subplots(1, len(influences), squeeze=False, sharey=True)[0]
    for axes, (name, seen) in zip(grid, influences.items(), strict=True):
        # open circles round dots: neither hides the other
        for label, limit, style in (
            ("every singular value", None, {"markersize": 7, "fillstyle": "none", "alpha": 0.4}),
            (f"singular values above {threshold:g}", threshold, {"markersize": 2}),
        ):
            influence = seen.gradients.image_influence(seen.labels, threshold=limit).double()
            # zero has no place on a logarithmic axis: it is drawn at the lower edge
            odds, shown = seen.odds().clamp_min(1e-20), influence.clamp_min(1e-20)
            axes.plot(odds, shown, "o", label=label, **style)
        axes.set(xscale="log", yscale="log", title=f"{name} network")
        axes.set_xlabel("odds against the image's class, 1 / P - 1")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("influence of the image (0 at the lower edge)")
    grid[0].legend(fontsize="small")
    figures.save(figure, path)


def draw_vulnerable(examples: Examples, classes: Sequence[str], path: Path) -> None:
    """Draw images with the influence and the gradient of every pixel on the next likely class."""
    shown = examples[:_SHOWN]
    influence = shown.gradients.pixel_influence(shown.targets)
    rows = [
        _Row("image", shown.images),
        _Row("influence of\neach pixel", influence.mean(1), "on the next class"),
        _Row("gradient", shown.target_slope().mean(1), "|d log P / d pixel|"),
    ]
    size = shown.gradients.image_influence(shown.labels)
    titles = [
        f"{classes[label]}\nnext: {classes[target]}\ninfluence {value:.2g}"
        for label, target, value in zip(shown.labels, shown.targets, size, strict=True)
    ]
    _draw_rows(rows, titles, path)


def draw_adversarial(
    model: nn.Module,
    examples: Examples,
    made: Mapping[str, Tensor],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draw what attacks have made of images, and what the network takes those of the swarm for."""
    shown = examples[:_SHOWN]
    rows = [_Row("image", shown.images)]
    for name in ("pgd", "swarm", "swarm_influence"):
        attacked = made[name][:_SHOWN]
        change = 255 * (attacked - shown.images).mean(1)
        rows.append(_Row(name.replace("_", "\n"), attacked))
        rows.append(_Row("change", change, "levels of 255", signed=True))
    with torch.no_grad():
        taken = model(made["swarm"][:_SHOWN]).argmax(-1)
    titles = [
        f"{classes[label]}\ntaken for\n{classes[other]}"
        for label, other in zip(shown.labels, taken, strict=True)
    ]
    _draw_rows(rows, titles, path)


def _draw_rows(rows: Sequence[_Row], titles: Sequence[str], path: Path) -> None:
    count = len(titles)
    figure = figures.blank(1.3 * count + 2.0, 1.35 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, row in zip(grid, rows, strict=True):
        most = 1.0 if row.unit is None else float(row.images.abs().max())
        for axes, image in zip(line, row.images, strict=True):
            pixels = image.movedim(0, -1) if row.unit is None else image  # channels come last there
            low, colors = (-most, "RdBu_r") if row.signed else (0.0, "gray")
            drawn = axes.imshow(pixels.numpy(), cmap=colors, vmin=low, vmax=most)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(row.label)
        if row.unit is not None:
            figure.colorbar(drawn, ax=line.tolist(), label=row.unit, pad=0.01)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="small")
    figures.save(figure, path)
