"""Fit a scalar function to its values at some points: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_sobolev.experiments.common.module import NetModule
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.experiments.run.sharding import shard
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.metrics import DerivativeNMSE, ValueNMSE


class RegressionModule(NetModule):
    """Mean squared error on batches ``{"x": [batch, dim], "y": [batch], "dydx": [batch, dim]}``.

    Logs ``train/loss`` every ``log_every_n_steps``; at test time ``test/value_nmse`` and
    ``test/derivative_nmse``, both in the units of the batch.

    Args:
        net: Maps ``[batch, dim]`` to ``[batch]``.
        optimizer: Makes the optimizer of the parameters; ``line_search`` is for batches of all
            points.
        scheduler: Makes the schedule of its learning rate.
    """

    def __init__(
        self, net: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None = None
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        self.test_value_nmse = ValueNMSE()
        self.test_derivative_nmse = DerivativeNMSE()

    def configure_model(self) -> None:
        """Split the network over processes where the strategy asks for it."""
        shard(self.net, self.device_mesh)

    def training_step(self, batch: dict[str, Tensor], *_: Any) -> Tensor:
        """Return the mean squared error of the values."""
        loss = mse_loss(self.net(batch["x"]), batch["y"])
        self.log_loss(loss, len(batch["x"]))
        return loss

    def test_step(self, batch: dict[str, Tensor], *_: Any) -> None:
        """Compare values and gradients."""
        jet = tape_jet(self.net, batch["x"])
        gradient = jet.vjp(torch.ones_like(jet.value)[None])
        self.test_value_nmse.update(jet.value, batch["y"])
        self.test_derivative_nmse.update(gradient, batch["dydx"][None])
        self.log("test/value_nmse", self.test_value_nmse)
        self.log("test/derivative_nmse", self.test_derivative_nmse)
