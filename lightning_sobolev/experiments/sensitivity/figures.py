"""Pictures of a classifier's sensitivity: vulnerable images, maps of pixels, adversarial images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_sobolev.experiments.sensitivity.attacks import Victims

_SHOWN = 8
_EDGE = 1e-20


def draw_influence(influences: Mapping[str, Victims], threshold: float, path: Path) -> None:
    """Draw the image influence with and without a threshold over the odds against the class.

    Args:
        influences: Correctly classified images, by network.
        threshold: Of the singular values.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 4.0), layout="constrained")
    grid = figure.subplots(1, len(influences), squeeze=False)[0]
    for axes, (name, seen) in zip(grid, influences.items(), strict=True):
        odds = seen.odds().clamp_min(_EDGE)
        for label, limit in (("every singular value", None), (f"above {threshold:g}", threshold)):
            influence = seen.gradients.image_influence(seen.labels, threshold=limit)
            # zero has no place on a logarithmic axis: it is drawn at the lower edge
            axes.plot(odds, influence.double().clamp_min(_EDGE), ".", markersize=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel="1 / P - 1", title=name)
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("influence of the image")
    grid[0].legend(fontsize="small", markerscale=3)
    figure.savefig(path, dpi=120)


def draw_victims(victims: Victims, path: Path) -> None:
    """Draw images with the influence and the gradient of every pixel on the next likely class.

    Args:
        victims: Images, the first of which are drawn.
        path: The PNG file.
    """
    shown = victims.of(torch.arange(min(_SHOWN, len(victims.labels))))
    influence = shown.gradients.pixel_influence(shown.targets)
    slope = shown.gradients.gradients[torch.arange(len(shown.labels)), shown.targets].abs()
    rows = {"image": shown.images, "pixel influence": influence, "gradient": slope}
    size = shown.gradients.image_influence(shown.labels)
    titles = [f"FI {value:.2g}" for value in size.tolist()]
    _draw_rows({name: images.mean(1) for name, images in rows.items()}, titles, path)


def draw_adversarial(
    model: nn.Module, victims: Victims, made: Mapping[str, Tensor], path: Path
) -> None:
    """Draw what attacks have made of the first images, and what the network takes them for.

    Args:
        model: Gives logits of pixels.
        victims: The images.
        made: Attacked images by attack.
        path: The PNG file.
    """
    count = min(_SHOWN, len(victims.labels))
    rows = {"image": victims.images[:count].mean(1)}
    for name in ("pgd", "swarm", "swarm_influence"):
        rows[name] = made[name][:count].mean(1)
        rows[f"{name}: change"] = (made[name] - victims.images)[:count].abs().mean(1)
    with torch.no_grad():
        taken = model(made["swarm"][:count]).argmax(-1).tolist()
    labels = victims.labels[:count].tolist()
    titles = [f"{label} to {other}" for label, other in zip(labels, taken, strict=True)]
    _draw_rows(rows, titles, path)


def _draw_rows(rows: Mapping[str, Tensor], titles: Sequence[str], path: Path) -> None:
    from matplotlib.figure import Figure

    count = len(titles)
    figure = Figure(figsize=(1.3 * count + 0.4, 1.35 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.numpy(), cmap="gray")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize="x-small")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize="small")
    figure.savefig(path, dpi=100)
