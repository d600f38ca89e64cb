"""The learning rate of a member that goes on from somebody else's checkpoint."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback


class OwnLearningRate(Callback):
    """Keeps the configured learning rate although a checkpoint brings the donor's.

    The moments of the optimizer and the place on the schedule stay the donor's; every group's rate
    is scaled by new over old first rate, so a schedule that is a multiple of its first rate goes
    on as if it had begun with the new one.
    """

    def __init__(self) -> None:
        self._configured: list[list[float]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the rates; the optimizers are built and nothing is restored yet."""
        del pl_module
        self._configured = [
            [_first_rate(group) for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back, in the optimizers and in what their schedules remember."""
        del pl_module
        for optimizer, rates in zip(trainer.optimizers, self._configured, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] *= rate / _first_rate(group)
                if "initial_lr" in group:
                    group["initial_lr"] = rate
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            groups = schedule.optimizer.param_groups
            schedule.base_lrs = [_first_rate(group) for group in groups]
            schedule._last_lr = [group["lr"] for group in groups]


def _first_rate(group: dict[str, Any]) -> float:
    return float(group.get("initial_lr", group["lr"]))
