"""Fit a scalar function to its values at some points: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)
from lightning_sobolev.experiments.run.sharding import shard
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.metrics import DerivativeNMSE, ValueNMSE


class RegressionModule(pl.LightningModule):
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
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.optimizer, self.scheduler = optimizer, scheduler
        self.test_value_nmse = ValueNMSE()
        self.test_derivative_nmse = DerivativeNMSE()

    def configure_model(self) -> None:
        """Split the network over processes where the strategy asks for it."""
        shard(self.net, self.device_mesh)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, " batch"]:
        """Return the fitted values."""
        values: Tensor = self.net(x)
        return values

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean squared error of the values."""
        del batch_idx
        loss = mse_loss(self.net(batch["x"]), batch["y"])
        # On networks as small as these an entry costs a third of the step (measured), and between
        # two entries nobody reads it.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss, batch_size=len(batch["x"]))
        return loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare values and gradients."""
        del batch_idx
        jet = tape_jet(self.net, batch["x"])
        gradient = jet.vjp(torch.ones_like(jet.value)[None])
        self.test_value_nmse.update(jet.value, batch["y"])
        self.test_derivative_nmse.update(gradient, batch["dydx"][None])
        self.log("test/value_nmse", self.test_value_nmse)
        self.log("test/derivative_nmse", self.test_derivative_nmse)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return configured(self.net.parameters(), self.optimizer, self.scheduler)
