"""What modules of one network share."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}
"""Of a trainer that says and leaves nothing."""


class NetModule(pl.LightningModule):
    """A network with its optimizer."""

    def __init__(
        self, net: nn.Module, optimizer: OptimizerFactory, scheduler: SchedulerFactory | None = None
    ) -> None:
        super().__init__()
        self.net, self.optimizer, self.scheduler = net, optimizer, scheduler

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network answers."""
        answer: Tensor = self.net(x)
        return answer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return configured(self.parameters(), self.optimizer, self.scheduler)

    def log_loss(self, loss: Tensor, batch_size: int) -> None:
        """Log ``train/loss`` every ``log_every_n_steps``."""
        # On small networks an entry costs a third of the step (measured), and between two entries
        # nobody reads it.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss, batch_size=batch_size)
