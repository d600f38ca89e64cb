"""Saves a training while it runs, stops it at its limits, and shows how far it is."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from lightning_sobolev._progress import Advance
from lightning_sobolev.experiments.teach.checkpoints import mean_return, save_checkpoint
from lightning_sobolev.experiments.teach.logs import TrainingLog
from lightning_sobolev.experiments.teach.settings import Limits

log = logging.getLogger(__name__)


class Keeper(BaseCallback):
    """Acts between two updates alone, where weights, optimizer and step count belong together.

    Args:
        path: The checkpoint.
        minutes: Minutes between two saves; 0 saves after every update.
        limits: When to stop.
        record: The log.
        about: What else the checkpoint shall say.
        advance: Told how many steps are done.
        is_interrupted: Whether somebody wants to stop.
    """

    model: PPO

    def __init__(
        self,
        path: Path,
        *,
        minutes: float,
        limits: Limits,
        record: TrainingLog,
        about: dict[str, Any],
        advance: Advance,
        is_interrupted: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.path = path
        self.stopped_by: str | None = None
        self._minutes = minutes
        self._limits = limits
        self._record = record
        self._about = about
        self._advance = advance
        self._is_interrupted = is_interrupted
        self._shown = 0

    def _on_training_start(self) -> None:
        self._shown = self.model.num_timesteps
        self._saved = time.monotonic()

    def _on_rollout_start(self) -> None:
        self.stopped_by = self._reason()
        self._show()
        is_new = self.model.num_timesteps > self.model._num_timesteps_at_start
        if is_new and time.monotonic() - self._saved >= 60 * self._minutes:
            self._save()

    def _on_step(self) -> bool:
        if self.stopped_by is None:
            return True
        # the learner has no way to stop before it plays: this step is not learned from
        self.model.num_timesteps -= self.training_env.num_envs
        return False

    def _on_training_end(self) -> None:
        self._show()
        self._save()

    def _reason(self) -> str | None:
        limits = self._limits
        mean, count = mean_return(self.model)
        if self._is_interrupted():
            return "interrupted"
        if limits.max_minutes is not None and self._record.seconds_of_run > 60 * limits.max_minutes:
            return "max_minutes"
        is_settled = count == self.model._stats_window_size
        if limits.stop_at is not None and is_settled and mean >= limits.stop_at:
            return "stop_at"
        return None

    def _show(self) -> None:
        mean, _ = mean_return(self.model)
        done = self.model.num_timesteps - self._shown
        self._shown = self.model.num_timesteps
        self._advance(done, f"{self._frames_per_second():,.0f} frames/s, return {mean:.1f}")

    def _frames_per_second(self) -> float:
        steps = self.model.num_timesteps - self.model._num_timesteps_at_start
        frames = steps * self.training_env.get_attr("settings")[0].frameskip
        return float(frames / max(self._record.seconds_of_run, 1e-3))

    def _save(self) -> None:
        self._saved = time.monotonic()
        record = {"seconds": self._record.seconds, "rows": self._record.rows}
        save_checkpoint(self.path, self.model, {**self._about, **record})
        self._record.save_curves()
        mean, count = mean_return(self.model)
        log.info(
            "step %d: return %.1f over the last %d games, %.0f frames/s; saved",
            *(self.model.num_timesteps, mean, count, self._frames_per_second()),
        )
