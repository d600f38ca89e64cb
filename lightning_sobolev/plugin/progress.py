"""What a callback must remember so that a resumed run goes on exactly."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_sobolev.balance import RunningBalance
from lightning_sobolev.objective import RunningScales


class Progress:
    """The number of draws so far and the running scales; a step that is broken off leaves none."""

    def __init__(self) -> None:
        self.counter = 0
        self.scales = RunningScales()
        self.balance = RunningBalance()
        self.evaluations = 0
        self._batch = -1
        self._before: dict[str, Any] | None = None

    def begin_batch(self, trainer: Trainer) -> None:
        """Remember where a step begins that may be broken off, or evaluated again."""
        self._batch, self.evaluations = _number_of_batch(trainer), 0
        self._before = self.state_dict()

    def begin_evaluation(self, trainer: Trainer) -> int:
        """Return the number of the draws of this evaluation of the batch."""
        # Searches for a learning rate take steps without the hooks of other callbacks.
        if self._batch != _number_of_batch(trainer):
            self.begin_batch(trainer)
        if self.evaluations and self._before is not None:  # a line search evaluates one function
            self.load_state_dict(self._before)
        self.evaluations += 1
        self.counter += 1
        return self.counter - 1

    def take_back(self, trainer: Trainer) -> None:
        """Forget the step that an exception broke off: what is saved now shall not count it."""
        if self._is_under_way(trainer) and self._before is not None:
            self.load_state_dict(self._before)

    def finished(self, trainer: Trainer | None) -> dict[str, Any]:
        """Return the state behind the last finished step: one under way (Slurm) is repeated."""
        under_way = trainer is not None and self._is_under_way(trainer)
        return self._before if under_way and self._before is not None else self.state_dict()

    def _is_under_way(self, trainer: Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        begun: bool = self._batch == progress.total.ready
        return begun and bool(progress.current.ready > progress.current.processed)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""
        scales = {k: {"mean": mean, "count": n} for k, (mean, n) in self.scales.state.items()}
        return {"counter": self.counter, "scales": scales, "balance": dict(self.balance.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` said."""
        self.counter = int(state["counter"])
        self.balance.state = dict(state.get("balance", {}))  # older checkpoints have none
        saved = state["scales"]
        self.scales.state = {k: (s["mean"], int(s["count"])) for k, s in saved.items()}


def _number_of_batch(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def sum_over_processes(total: Tensor) -> Tensor:
    """Sum over processes, in place, so that all of them use one scale."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
