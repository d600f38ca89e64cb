"""Checkpoints: the one from which an interrupted run goes on, and the one that is tested."""

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

log = logging.getLogger(__name__)


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
        """Save what training has come to, whatever ended it; its cause stays the error.

        Not with several processes: the others may be anywhere, or gone, and would be waited for.
        """
        del pl_module, exception
        is_new = trainer.global_step not in (0, self._saved_step)
        if trainer.state.fn != TrainerFn.FITTING or not is_new:
            return
        if trainer.world_size > 1:
            log.warning("step %d is not saved: %s", trainer.global_step, self._standing())
            return
        try:
            self._save(trainer)
        except OSError as error:
            log.warning("%s", error)

    def _save(self, trainer: pl.Trainer) -> None:
        # Under gradient accumulation several batches end at the same step.
        if trainer.global_step == self._saved_step:
            return
        standing = self._standing()
        self._saved_step = trainer.global_step
        writing = self.path.with_suffix(".writing")
        try:
            trainer.save_checkpoint(writing)
        except OSError as error:
            text = f"step {trainer.global_step} could not be saved ({error}); {standing}"
            raise OSError(error.errno, text) from error
        if trainer.is_global_zero:
            os.replace(writing, self.path)

    def _standing(self) -> str:
        step = self._saved_step
        return f"{self.path} holds step {step}" if step >= 0 else "nothing was saved in this run"


def best_weights(trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint of the best validation.

    Args:
        trainer: A trainer that has trained.

    Returns:
        The file; None where no callback keeps one, and the last weights are all there is.
    """
    keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    paths = [Path(keeper.best_model_path) for keeper in keepers if keeper.best_model_path]
    return paths[0] if paths else None


def whole_checkpoint(path: Path) -> Path:
    """Check that a checkpoint was written to its end and is what was written.

    Costs one pass over the file.

    Args:
        path: The file.

    Returns:
        The same path.

    Raises:
        ValueError: If it is cut short or damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:  # torch's format; every part has a checksum
            damaged = file.testzip()
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {error}") from error
    if damaged is not None:
        raise ValueError(f"ckpt must be a whole checkpoint, got {path}: {damaged} is damaged")
    return path
