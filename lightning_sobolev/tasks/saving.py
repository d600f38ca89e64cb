"""One checkpoint from which an interrupted run goes on."""

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn


class SaveLast(Checkpoint):
    """Keep ``last.ckpt`` up to date: now and then, at the end, and when training breaks off.

    A file is replaced only by a complete one. Being a ``Checkpoint``, it comes after all other
    callbacks, so what they store is as old as the weights, and takes the place of the trainer's
    own checkpoint callback. Where the data grow between epochs (``datamodule.grows``) the end of an
    epoch is saved too: what joins them is decided by these weights, and must not be repeated.

    Args:
        folder: Where ``last.ckpt`` goes.
        every_n_steps: Steps between two saves.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.path = Path(folder) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time."""
        del pl_module, outputs, batch, batch_idx
        grows = trainer.is_last_batch and getattr(trainer.datamodule, "grows", False)  # type: ignore[attr-defined]
        if trainer.global_step % self.every_n_steps == 0 or grows:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the trained module."""
        del pl_module
        self._save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what training has come to, whatever ended it."""
        del pl_module, exception
        if trainer.state.fn == TrainerFn.FITTING and trainer.global_step > 0:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        # Under gradient accumulation several batches end at the same step.
        if trainer.global_step == self._saved_step:
            return
        self._saved_step = trainer.global_step
        writing = self.path.with_suffix(".writing")
        trainer.save_checkpoint(writing)
        if trainer.is_global_zero:
            os.replace(writing, self.path)
