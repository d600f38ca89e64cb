"""Tell classes apart: an ordinary LightningModule."""

from collections.abc import Mapping

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.tasks.optimizers import cosine_decay


class ClassificationModule(pl.LightningModule):
    """Cross-entropy on batches ``{"x": [batch, *in], "y": int64 [batch]}``.

    Logs ``train/loss`` every ``log_every_n_steps``; ``test/loss`` and ``test/accuracy``.

    Args:
        net: Maps inputs to logits.
        lr: Learning rate of the first step; it falls to zero along half a cosine.
        max_steps: Length of the training.
        optimizer: adam, adamw, sgd or soap.
    """

    def __init__(
        self, net: nn.Module, lr: float = 1e-3, max_steps: int = 1000, optimizer: str = "adam"
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["net"])
        self.net = net
        self.lr, self.max_steps, self.optimizer = lr, max_steps, optimizer

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the batch's mean loss."""
        del batch_idx
        loss = cross_entropy(self(batch["x"]), batch["y"])
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss, batch_size=len(batch["x"]))
        return loss

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure the loss and the share of right answers."""
        del batch_idx
        y = batch["y"]
        logits = self(batch["x"])
        self.log("test/loss", cross_entropy(logits, y), batch_size=len(y))
        accuracy = (logits.argmax(-1) == y).float().mean()
        self.log("test/accuracy", accuracy, batch_size=len(y))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return cosine_decay(
            self.net.parameters(),
            optimizer=self.optimizer,
            lr=self.lr,
            max_steps=self.max_steps,
        )
