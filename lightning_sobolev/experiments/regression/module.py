"""Fit a scalar function to its values at some points: an ordinary LightningModule.

Nothing in it knows of derivative matching; a ``SobolevCallback`` adds that from outside.
"""

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_sobolev.experiments.run.optimizers import (
    LINE_SEARCH,
    OPTIMIZERS,
    cosine_decay,
    line_search,
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
        lr: Learning rate of the first step; it falls to zero along half a cosine. With lbfgs the
            length of the first trial along a line.
        max_steps: Length of the training.
        optimizer: adam, adamw, sgd, soap (extra ``optim``), or lbfgs, for batches of all points.

    Raises:
        ValueError: If the optimizer is unknown.
    """

    def __init__(
        self, net: nn.Module, lr: float = 1e-3, max_steps: int = 3000, optimizer: str = "adam"
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        known = (*OPTIMIZERS, LINE_SEARCH)
        if optimizer not in known:
            raise ValueError(f"optimizer must be one of {known}, got {optimizer!r}")
        self.net = net
        self.lr, self.max_steps, self.optimizer = lr, max_steps, optimizer
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
        """Return the optimizer and its schedule.

        Raises:
            ValueError: If several processes are to search along lines, each by its own rows.
        """
        if self.optimizer == LINE_SEARCH:
            if self.trainer.world_size > 1:
                raise ValueError(
                    "optimizer='lbfgs' needs one process: each would search by the loss of its own "
                    f"rows, and they would part; got {self.trainer.world_size}"
                )
            return line_search(self.net.parameters(), lr=self.lr)
        return cosine_decay(
            self.net.parameters(),
            optimizer=self.optimizer,
            lr=self.lr,
            max_steps=self.max_steps,
        )
