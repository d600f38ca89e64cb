"""What is logged while a teacher trains: to Lightning's loggers, and as one curve over all runs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from stable_baselines3.common.logger import KVWriter

from lightning_sobolev.experiments.run.history import write_curves

KEYS = {
    "rollout/ep_rew_mean": "train/return",
    "rollout/ep_len_mean": "train/game_length",
    "time/fps": "train/steps_per_second",
    "train/loss": "train/loss",
    "train/value_loss": "train/value_loss",
    "train/entropy_loss": "train/entropy_loss",
    "train/approx_kl": "train/approx_kl",
    "train/clip_fraction": "train/clip_fraction",
    "train/explained_variance": "train/explained_variance",
    "train/learning_rate": "train/learning_rate",
}
"""The learner's names and ours."""


class TrainingLog(KVWriter):
    """Receives what the learner says of itself.

    Args:
        folder: Where ``curves.csv`` goes; it holds all runs of an interrupted training.
        loggers: Lightning's; they get this run alone.
        rows: Entries of the earlier runs.
        seconds: How long the earlier runs trained.
    """

    def __init__(
        self,
        folder: Path,
        loggers: Sequence[Logger],
        rows: Sequence[dict[str, float]] = (),
        seconds: float = 0.0,
    ) -> None:
        self.folder = folder
        self.loggers = loggers
        self.rows = list(rows)
        self._earlier = seconds
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long all runs have trained."""
        return self._earlier + self.seconds_of_run

    @property
    def seconds_of_run(self) -> float:
        """How long this run has trained."""
        return time.monotonic() - self._started

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Note the entries that have a name here."""
        del key_excluded
        metrics = {KEYS[key]: float(value) for key, value in key_values.items() if key in KEYS}
        self.rows.append({"step": step, "seconds": round(self.seconds, 3), **metrics})
        for logger in self.loggers:
            logger.log_metrics(metrics, step)
            logger.save()

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.finalize("success")

    def save_curves(self) -> None:
        """Bring ``curves.csv`` up to date."""
        write_curves(self.folder, self.rows)
