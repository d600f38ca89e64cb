"""What happens between two updates of the learner: entries in the log, checkpoints, the end.

stable-baselines3's own callbacks act after every step, in the midst of what an update will be made
of, and its checkpoints are pickles.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from lightning_sobolev._progress import Advance

_NAMES = {
    "rollout/ep_rew_mean": "train/return",
    "rollout/ep_len_mean": "train/game_length",
    "time/fps": "train/steps_per_second",
}


class Curves(KVWriter):
    """Receives what the learner says of itself: for Lightning's loggers and ``curves.csv``."""

    def __init__(
        self, loggers: Sequence[Logger], rows: Sequence[dict[str, float]], seconds: float
    ) -> None:
        self.loggers, self.rows = loggers, list(rows)
        self._began = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """How long all runs have trained."""
        return time.monotonic() - self._began

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Note what the learner does not keep from TensorBoard: counters and clocks."""
        metrics = {
            _NAMES.get(key, key): float(value)
            for key, value in key_values.items()
            if "tensorboard" not in (key_excluded[key] or ())
        }
        self.rows.append({"step": step, "seconds": round(self.seconds, 3), **metrics})
        for logger in self.loggers:
            logger.log_metrics(metrics, step)
            logger.save()

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.finalize("success")


class StopLearning(Exception):
    """Leaves the learner, which has no other way to stop before it plays on; says why."""


class BetweenUpdates(BaseCallback):
    """Shows, stops and saves where weights, optimizer and step count belong together."""

    model: PPO

    def __init__(
        self,
        save: Callable[[], None],
        why_stop: Callable[[], str | None],
        advance: Advance,
        minutes_between_saves: float,
    ) -> None:
        super().__init__()
        self._save, self._why_stop, self._advance = save, why_stop, advance
        self._seconds = 60 * minutes_between_saves

    def _on_training_start(self) -> None:
        self._saved, self._shown = time.monotonic(), self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        done, self._shown = self.model.num_timesteps - self._shown, self.model.num_timesteps
        self._advance(done, f"return {mean_return(self.model):.1f}")
        if reason := self._why_stop():
            raise StopLearning(reason)
        if done and time.monotonic() - self._saved >= self._seconds:
            self._save()
            self._saved = time.monotonic()

    def _on_step(self) -> bool:
        return True


def mean_return(learner: PPO) -> float:
    """Return the mean return of the last games, NaN before the first."""
    games = learner.ep_info_buffer or ()
    return sum(game["r"] for game in games) / len(games) if games else math.nan


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Note the first Ctrl-C (or SIGTERM) in the list; the second ends the program at once."""
    noted: list[int] = []

    def note(number: int, _: object) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(number)

    before = {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
