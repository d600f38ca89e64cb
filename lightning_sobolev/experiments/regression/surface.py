"""The surface that a regression run has learned: stored on a grid, drawn beside the true one."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from jaxtyping import Float

from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.functional.derivatives import tape_jet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIT = "fit.npz"


@dataclass(frozen=True, slots=True)
class Surface:
    """A fit of a function of two inputs, on a square grid, in the function's own units.

    Args:
        x: Grid points.
        value: The function there.
        gradient: Its gradient.
        fit: The network's value.
        fit_gradient: The network's gradient.
        train_x: Where the function was known.
    """

    x: Float[np.ndarray, "side side 2"]
    value: Float[np.ndarray, "side side"]
    gradient: Float[np.ndarray, "side side 2"]
    fit: Float[np.ndarray, "side side"]
    fit_gradient: Float[np.ndarray, "side side 2"]
    train_x: Float[np.ndarray, "points 2"]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a stored surface."""
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def save(self, path: Path) -> None:
        """Store the surface."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(path, **{k: v.astype(np.float32) for k, v in arrays.items()})


def surface_of(module: RegressionModule, data: LandscapeDataModule, side: int = 41) -> Surface:
    """Evaluate function and network on a grid over the domain.

    Args:
        module: The trained module.
        data: What it was trained on.
        side: Points along an axis.

    Returns:
        Both in the function's own units.

    Raises:
        ValueError: If the input is not two-dimensional.
    """
    if len(data.low) != 2:
        raise ValueError(f"a surface needs two inputs, got dim={len(data.low)}")
    axes = [
        torch.linspace(*ends, side, dtype=torch.float64)
        for ends in zip(data.low.tolist(), data.high.tolist(), strict=True)
    ]
    x = torch.cartesian_prod(*axes)
    points = data.units.inputs(x).to(next(module.parameters()))
    jet = tape_jet(module.net, points)
    slopes = jet.vjp(torch.ones_like(jet.value)[None])[0]
    known = data.units.inputs(data.train_points.columns["x"].double(), undo=True)
    return Surface(
        x=x.reshape(side, side, 2).numpy(),
        value=data.landscape.value(x).reshape(side, side).numpy(),
        gradient=data.landscape.gradient(x).reshape(side, side, 2).numpy(),
        fit=data.units.targets(jet.value.detach().cpu(), undo=True).reshape(side, side).numpy(),
        fit_gradient=data.units.jacobian(slopes.cpu(), undo=True).reshape(side, side, 2).numpy(),
        train_x=known.numpy(),
    )


class SaveSurface:
    """Store the learned surface as ``fit.npz`` and draw it as ``surface.png``.

    Args:
        picture: Whether to draw.
    """

    def __init__(self, picture: bool = True) -> None:
        self.picture = picture

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Store and draw; add no number. Inputs of another dimension than two are skipped."""
        module, data = run.module, run.datamodule
        if not isinstance(module, RegressionModule) or not isinstance(data, LandscapeDataModule):
            raise ValueError(
                "a surface needs a RegressionModule on a LandscapeDataModule, got "
                f"{type(module).__name__} on {type(data).__name__}"
            )
        if len(data.low) == 2:
            surface = surface_of(module, data)
            surface.save(run.folder / FIT)
            if self.picture:
                draw_surfaces(
                    {"fit": surface}, run.folder / "surface.png", title=data.landscape.name
                )
        return {}


def draw_surfaces(fits: Mapping[str, Surface], path: Path, *, title: str) -> None:
    """Draw the true surface and some fits of it side by side, with arrows along the gradients.

    Args:
        fits: Fits of one function on one grid, by what they are called.
        path: The picture.
        title: Above everything.
    """
    from matplotlib.figure import Figure

    first = next(iter(fits.values()))
    panels = [("true", first.value, first.gradient)]
    panels += [(name, fit.fit, fit.fit_gradient) for name, fit in fits.items()]
    figure = Figure(figsize=(3.6 * len(panels), 3.4), layout="constrained")
    levels = np.linspace(first.value.min(), first.value.max(), 24)
    for axes, (name, value, gradient) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.contourf(first.x[..., 0], first.x[..., 1], value, levels=levels, extend="both")
        _arrows(axes, first.x, gradient, longest=np.linalg.norm(first.gradient, axis=-1).max())
        axes.scatter(*first.train_x.T, s=6, c="red", linewidths=0)
        axes.set(title=name, xticks=[], yticks=[])
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _arrows(
    axes: "Axes",
    x: Float[np.ndarray, "side side 2"],
    gradient: Float[np.ndarray, "side side 2"],
    *,
    longest: float,
) -> None:
    every = (slice(2, None, 4), slice(2, None, 4))
    # Square roots of the lengths: gradients of these functions span orders of magnitude.
    length = np.linalg.norm(gradient[every], axis=-1, keepdims=True)
    shown = gradient[every] / np.maximum(length, 1e-12) * np.sqrt(length / longest)
    axes.quiver(
        x[every][..., 0],
        x[every][..., 1],
        shown[..., 0],
        shown[..., 1],
        color="white",
        scale=16,
        width=0.004,
    )
