"""How well a network prices options: errors in the market's own units, and a figure."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common import figures
from lightning_sobolev.experiments.finance.data import BasketDataModule
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.loading import Table

Prices = dict[str, tuple[Tensor, Tensor]]
"""``price`` and ``delta``, true and fitted, in the market's units."""


class PriceErrors(pl.Callback):
    """Log ``price_rmse`` and ``delta_rmse`` at validation and test states; draw ``prices.png``.

    The first is in percent of the basket's price today (100), the second relative to the root mean
    square of the true deltas.

    Args:
        picture: Whether to draw.
    """

    def __init__(self, *, picture: bool = True) -> None:
        self.picture = picture

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the errors and draw the test states."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        right = isinstance(data, BasketDataModule)
        require(right, "data of PriceErrors", "a BasketDataModule", type(data).__name__)
        for stage, table in (("val", data.validation_points()), ("test", data.test_points())):
            prices = _prices(pl_module.get_submodule("net"), data, table)
            price, delta = ((fit - true).square().mean() for true, fit in prices.values())
            true_delta = prices["delta"][0].square().mean()
            pl_module.log(f"{stage}/price_rmse", float(price.sqrt()))
            pl_module.log(f"{stage}/delta_rmse", float((delta / true_delta).sqrt()))
        if self.picture:
            states = data.units.inputs(table.columns["x"].double(), undo=True)
            path = Path(trainer.default_root_dir) / "prices.png"
            _draw(states @ data.call.weights, prices, path)


def _prices(net: nn.Module, data: BasketDataModule, table: Table) -> Prices:
    columns, units = table.columns, data.units
    jet = tape_jet(net, columns["x"].to(next(net.parameters()).device))
    slope = jet.vjp(torch.ones_like(jet.value)[None])[0]

    def priced(value: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        value, delta = value.detach().cpu().double(), delta.detach().cpu().double()
        return units.targets(value, undo=True), units.jacobian(delta, undo=True)

    true, true_delta = priced(columns["y"], columns["dydx"])
    fit, fit_delta = priced(jet.value, slope)
    return {"price": (true, fit), "delta": (true_delta, fit_delta)}


def _draw(basket: Tensor, prices: Prices, path: Path) -> None:
    figure = figures.blank(8.4, 3.6)
    left, right = figure.subplots(1, 2)
    left.set_ylabel("price of the call (today's basket: 100)")
    right.set_ylabel("sum of the deltas")
    for axes, (true, fit) in zip((left, right), prices.values(), strict=True):
        for values, color, label in ((fit, None, "network"), (true, "black", "true")):
            shown = values.reshape(len(basket), -1).sum(1)
            axes.plot(basket, shown, ".", markersize=2, color=color, label=label)
        axes.set_xlabel("value of the basket (today: 100)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", markerscale=4)
    figures.save(figure, path)
