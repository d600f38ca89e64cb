"""What is logged while training: into one small file, and as lines for whoever reads along."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from lightning.pytorch.utilities import rank_zero_only

from lightning_sobolev._files import whole

log = logging.getLogger(__name__)

CURVES = "curves.csv"
_LINES = 20  # of a whole training, about


class Curves(pl.Callback):
    """Write ``curves.csv``: columns step, seconds and every ``train/`` and ``val/`` key.

    Rows and seconds of training are a part of the checkpoint: a resumed run's file is that of the
    whole training. Lightning's ``CSVLogger`` deletes what an earlier run of the folder wrote.

    Training gives a row every ``every_n_steps``, a validation always one; with ``say`` some twenty
    rows in all are lines of the log too.
    """

    def __init__(self, folder: str | Path, every_n_steps: int = 50, *, say: bool = False) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.folder = Path(folder)
        self.every_n_steps, self.say = every_n_steps, say
        self.rows: list[dict[str, float]] = []
        self._earlier, self._started = 0.0, time.perf_counter()
        self._earlier_cpu, self._started_cpu = 0.0, time.process_time()
        self._noted_step, self._first_step = -1, 0

    @property
    def seconds(self) -> float:
        """How long training has taken, interruptions left out."""
        return self._earlier + time.perf_counter() - self._started

    @property
    def cpu_seconds(self) -> float:
        """Processor time of training: what a busy machine leaves as it is."""
        return self._earlier_cpu + time.process_time() - self._started_cpu

    def state_dict(self) -> dict[str, Any]:
        """Return rows and seconds."""
        spent = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return {"rows": list(self.rows), **spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from earlier rows and seconds."""
        self.rows, self._earlier = list(state_dict["rows"]), state_dict["seconds"]
        self._earlier_cpu = state_dict.get("cpu_seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Start the clock."""
        self._started, self._first_step = time.perf_counter(), trainer.global_step
        self._started_cpu = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the training keys now and then."""
        # Under gradient accumulation several batches share one step.
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._noted_step:
            self._noted_step = step
            self._note(trainer, "train/")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the validation keys."""
        if not trainer.sanity_checking:
            self._note(trainer, "val/")

    @rank_zero_only
    def on_train_end(self, *_: Any) -> None:
        """Write the file."""
        if self.rows:
            write_curves(self.folder, self.rows)

    def on_exception(self, *_: Any) -> None:
        """Write what there is, also when training was interrupted."""
        self.on_train_end()

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


def write_curves(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write ``curves.csv`` whole or not at all."""
    with whole(folder / CURVES) as writing:
        names = None if rows else ["step", "seconds"]
        pd.DataFrame(rows, columns=names).to_csv(writing, index=False)
