"""What was logged while training, by step and by wall time, in one small CSV file."""

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lightning_sobolev._files import whole

CURVES = "curves.csv"


class LossHistory(pl.Callback):
    """Write ``curves.csv``: columns step, seconds and every ``train/`` and ``val/`` key.

    Seconds are those since the first step, so that methods can be compared by what they cost.

    Args:
        folder: Where the file goes.
        every_n_steps: Steps between two training entries; a validation always gives one.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.rows: list[dict[str, float]] = []
        self._started = 0.0
        self._noted_step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        del trainer, pl_module
        self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the training keys now and then."""
        del pl_module, outputs, batch, batch_idx
        # Under gradient accumulation several batches share one step.
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._noted_step:
            self._noted_step = step
            self._note(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the validation keys."""
        del pl_module
        if not trainer.sanity_checking:
            self._note(trainer, "val/")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        del trainer, pl_module
        self._write()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write what there is, also when training was interrupted."""
        del trainer, pl_module, exception
        self._write()

    def _note(self, trainer: pl.Trainer, prefix: str) -> None:
        logged = trainer.callback_metrics
        row = {key: float(value) for key, value in logged.items() if key.startswith(prefix)}
        if row:
            seconds = time.perf_counter() - self._started
            self.rows.append({"step": trainer.global_step, "seconds": round(seconds, 3), **row})

    @rank_zero_only
    def _write(self) -> None:
        write_curves(self.folder, self.rows)


def write_curves(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write ``curves.csv`` whole or not at all.

    Args:
        folder: Where it goes.
        rows: Entries with ``step``, ``seconds`` and any other keys.
    """
    names = dict.fromkeys(["step", "seconds"])
    for row in rows:
        names.update(dict.fromkeys(row))
    with whole(folder / CURVES) as writing, writing.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(rows)


def read_curves(path: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Read ``curves.csv``.

    Args:
        path: The file.

    Returns:
        For every key its entries (step, seconds, value), in the order of steps.
    """
    curves: dict[str, list[tuple[float, float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            step, seconds = float(row.pop("step")), float(row.pop("seconds"))
            for key, text in row.items():
                if text:
                    curves.setdefault(key, []).append((step, seconds, float(text)))
    return curves
