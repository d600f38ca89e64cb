"""What is logged while training: into one small file, and as lines for whoever reads along."""

import csv
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from lightning_sobolev._files import whole

log = logging.getLogger(__name__)

CURVES = "curves.csv"
_LINES = 20  # of a whole training, about


class Curves(pl.Callback):
    """Write ``curves.csv``: columns step, seconds and every ``train/`` and ``val/`` key.

    Seconds are those of training, so that methods can be compared by what they cost. Rows and
    seconds are a part of the checkpoint: a resumed run's file is that of the whole training.
    Lightning's ``CSVLogger`` deletes what an earlier run of the same folder wrote.

    Args:
        folder: Where the file goes.
        every_n_steps: Steps between two training entries; a validation always gives one.
        say: Whether entries are lines of the log too, some twenty in all.

    Raises:
        ValueError: If ``every_n_steps`` is below one.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 50, *, say: bool = False) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps, self.say = every_n_steps, say
        self.rows: list[dict[str, float]] = []
        self._earlier, self._started = 0.0, time.perf_counter()
        self._noted_step = -1
        self._first_step = 0

    @property
    def seconds(self) -> float:
        """How long training has taken, interruptions left out."""
        return self._earlier + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return rows and seconds."""
        return {"rows": [dict(row) for row in self.rows], "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from earlier rows and seconds."""
        self.rows, self._earlier = [dict(row) for row in state_dict["rows"]], state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        del pl_module
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the training keys now and then."""
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

    def on_exception(self, *_: Any) -> None:
        """Write what there is, also when training was interrupted."""
        self._write()

    def _note(self, trainer: pl.Trainer, prefix: str) -> None:
        logged = trainer.callback_metrics
        row = {key: float(value) for key, value in logged.items() if key.startswith(prefix)}
        if not row:
            return
        self.rows.append({"step": trainer.global_step, "seconds": round(self.seconds, 3), **row})
        if self.say:
            self._line(trainer, row)

    @rank_zero_only
    def _line(self, trainer: pl.Trainer, row: dict[str, float]) -> None:
        step, steps = trainer.global_step, trainer.max_steps
        between = max(steps // _LINES // self.every_n_steps, 1) * self.every_n_steps
        if "train/loss" in row and step % between:
            return
        rate = (step - self._first_step) / (time.perf_counter() - self._started)
        values = " ".join(f"{key} {value:.4g}" for key, value in row.items() if value)
        left = f", {(steps - step) / rate:.0f} s left" if rate > 0 and steps > 0 else ""
        log.info("step %d/%d: %s (%.3g steps/s%s)", step, steps, values, rate, left)

    @rank_zero_only
    def _write(self) -> None:
        if self.rows:
            write_curves(self.folder, self.rows)


def write_curves(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write ``curves.csv`` whole or not at all."""
    names = dict.fromkeys(["step", "seconds"])
    for row in rows:
        names.update(dict.fromkeys(row))
    with whole(folder / CURVES) as writing, writing.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        writer.writerows(rows)
