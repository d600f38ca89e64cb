"""The surface that a regression run has learned: stored on a grid, drawn beside the true one."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._files import whole
from lightning_sobolev.experiments.common import figures
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.functional.derivatives import tape_jet

FIT = "fit.npz"


@dataclass(frozen=True, slots=True)
class Surface:
    """A function and a fit of it, known at ``train_x``, on a square grid, in its own units."""

    x: Float[np.ndarray, "side side 2"]
    value: Float[np.ndarray, "side side"]
    gradient: Float[np.ndarray, "side side 2"]
    fit: Float[np.ndarray, "side side"]
    fit_gradient: Float[np.ndarray, "side side 2"]
    train_x: Float[np.ndarray, "points 2"]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a stored surface."""
        stored = io.BytesIO(path.read_bytes())
        try:
            with np.load(stored) as arrays:
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except Exception as error:  # damage meets NumPy, zipfile, zlib and even the tokenizer
            raise ValueError(f"{path} must hold the surface of a run, got {error!r}") from error

    def save(self, path: Path) -> None:
        """Store the surface, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        with whole(path) as writing, writing.open("wb") as file:
            np.savez_compressed(file, **{k: v.astype(np.float32) for k, v in arrays.items()})


def surface_of(net: nn.Module, data: LandscapeDataModule) -> Surface:
    """Evaluate function and network on a grid over the domain."""
    units, pairs = data.units, zip(data.low.tolist(), data.high.tolist(), strict=True)
    x = torch.cartesian_prod(*(torch.linspace(*pair, 41, dtype=torch.float64) for pair in pairs))
    value, gradient, _ = data.landscape.derivatives(x)
    jet = tape_jet(net, units.inputs(x).to(next(net.parameters())))
    fit = units.targets(jet.value.detach().cpu(), undo=True)
    slopes = units.jacobian(jet.vjp(torch.ones_like(jet.value)[None])[0].cpu(), undo=True)
    known = units.inputs(data.training_points().columns["x"].double(), undo=True)
    columns = (x, value, gradient, fit, slopes)
    grids = [column.reshape(41, 41, *column.shape[1:]).numpy() for column in columns]
    return Surface(*[*grids, known.numpy()])


class SaveSurface(pl.Callback):
    """Store the learned surface as ``fit.npz`` after the test and draw it as ``surface.png``.

    Inputs of another dimension than two are left out.

    Args:
        picture: Whether to draw.
    """

    def __init__(self, picture: bool = True) -> None:
        self.picture = picture

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Store and draw."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        right = isinstance(data, LandscapeDataModule)
        require(right, "data of SaveSurface", "a LandscapeDataModule", type(data).__name__)
        if len(data.low) != 2:
            return
        folder = Path(trainer.default_root_dir)
        surface = surface_of(pl_module.get_submodule("net"), data)
        surface.save(folder / FIT)
        if self.picture:
            title = f"{data.landscape.name}, {len(surface.train_x)} points"
            draw_surfaces({"fit": surface}, folder / "surface.png", title=title)


def draw_surfaces(fits: Mapping[str, Surface], path: Path, *, title: str) -> None:
    """Draw the true surface and some fits of it side by side, with arrows along the gradients."""
    first = next(iter(fits.values()))
    panels = [("true", first.value, first.gradient)]
    panels += [(name, fit.fit, fit.fit_gradient) for name, fit in fits.items()]
    figure = figures.blank(3.4 * len(panels) + 0.8, 3.6)
    row = figure.subplots(1, len(panels), sharex=True, sharey=True)
    levels = np.linspace(first.value.min(), first.value.max(), 24)
    every = (slice(2, None, 4), slice(2, None, 4))
    longest = np.linalg.norm(first.gradient, axis=-1).max()
    for axes, (name, value, gradient) in zip(row, panels, strict=True):
        drawn = axes.contourf(*np.moveaxis(first.x, -1, 0), value, levels=levels, extend="both")
        # Square roots of the lengths: gradients of these functions span orders of magnitude.
        slopes = (gradient / longest)[every]
        lengths = np.linalg.norm(slopes, axis=-1, keepdims=True)
        arrows = slopes / np.sqrt(np.maximum(lengths, 1e-12))
        columns = (*np.moveaxis(first.x[every], -1, 0), *np.moveaxis(arrows, -1, 0))
        axes.quiver(*columns, color="white", scale=16, width=0.004)
        axes.scatter(*first.train_x.T, s=6, c="red", linewidths=0)
        axes.set(title=name, xlabel="$x_1$")
    row[0].set_ylabel("$x_2$")
    figure.colorbar(drawn, ax=row, label="value", format="%.3g")
    figure.suptitle(f"{title} (red: training points; arrows: gradients)", fontsize="medium")
    figures.save(figure, path)
