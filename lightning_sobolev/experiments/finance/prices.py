"""How well a network prices options: errors in the market's own units, and a figure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._files import whole
from lightning_sobolev.experiments.finance.data import BasketDataModule
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.loading import Table


@dataclass(frozen=True, slots=True)
class Fit:
    """True and fitted prices and deltas at some states, in the market's units."""

    basket: Float[Tensor, " states"]
    price: Float[Tensor, " states"]
    delta: Float[Tensor, "states assets"]
    fit: Float[Tensor, " states"]
    fit_delta: Float[Tensor, "states assets"]

    @property
    def price_rmse(self) -> float:
        """Root mean squared error of the price, in percent of the basket's price today (100)."""
        return float((self.fit - self.price).square().mean().sqrt())

    @property
    def delta_rmse(self) -> float:
        """The same of the deltas, relative to the root mean square of the true ones."""
        error = (self.fit_delta - self.delta).square().mean()
        return float((error / self.delta.square().mean()).sqrt())


def fit_at(module: RegressionModule, data: BasketDataModule, table: Table) -> Fit:
    """Evaluate a network at the states of a table."""
    units = data.units
    columns = {name: column.double() for name, column in table.columns.items()}
    jet = tape_jet(module.net, table.columns["x"].to(module.device))
    slope = jet.vjp(torch.ones_like(jet.value)[None])[0]
    return Fit(
        basket=units.inputs(columns["x"], undo=True) @ data.call.weights,
        price=units.targets(columns["y"], undo=True),
        delta=units.jacobian(columns["dydx"], undo=True),
        fit=units.targets(jet.value.detach().cpu().double(), undo=True),
        fit_delta=units.jacobian(slope.detach().cpu().double(), undo=True),
    )


class PriceErrors(pl.Callback):
    """Log ``price_rmse`` and ``delta_rmse`` at validation and test states; draw ``prices.png``.

    Args:
        picture: Whether to draw.
    """

    def __init__(self, *, picture: bool = True) -> None:
        self.picture = picture

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the errors and draw the test states."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(pl_module, RegressionModule) or not isinstance(data, BasketDataModule):
            raise ValueError(
                "PriceErrors needs a RegressionModule on a BasketDataModule, got "
                f"{type(pl_module).__name__} on {type(data).__name__}"
            )
        for stage, table in (("val", data.validation_points()), ("test", data.test_points())):
            fit = fit_at(pl_module, data, table)
            pl_module.log(f"{stage}/price_rmse", fit.price_rmse)
            pl_module.log(f"{stage}/delta_rmse", fit.delta_rmse)
        if self.picture:
            draw_fit(fit, Path(trainer.default_root_dir) / "prices.png")


def draw_fit(fit: Fit, path: Path) -> None:
    """Draw prices and the deltas' sum over the value of the basket into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    pairs = {
        "price of the call (today's basket: 100)": (fit.price, fit.fit),
        "sum of the deltas": (fit.delta.sum(1), fit.fit_delta.sum(1)),
    }
    for axes, (name, (true, fitted)) in zip(figure.subplots(1, 2), pairs.items(), strict=True):
        axes.plot(fit.basket, fitted, ".", markersize=2, label="network")
        axes.plot(fit.basket, true, ".", markersize=2, color="black", label="true")
        axes.set(xlabel="value of the basket (today: 100)", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", markerscale=4)
    with whole(path) as writing:
        figure.savefig(writing, dpi=120, format="png")
