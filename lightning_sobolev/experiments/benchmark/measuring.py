"""Time, memory and operations of training steps inside a real Trainer, one way after the other."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from lightning_sobolev.experiments.benchmark.arithmetic import counted
from lightning_sobolev.experiments.benchmark.methods import Built
from lightning_sobolev.experiments.benchmark.workloads import Workload

_WARM_UP = 1
"""Steps at the beginning of every visit that are not counted."""


class StepTimes(pl.Callback):
    """Seconds from the start of each step to the start of the next, all of Lightning included.

    Args:
        clock: ``wall``, or ``cpu`` for the time that processors worked for this process: with one
            thread the same on an idle machine, and hardly moved by what others run beside it.
    """

    def __init__(self, clock: str = "wall") -> None:
        self._clock = time.process_time if clock == "cpu" else time.perf_counter
        self._starts: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """What was measured after warming up."""
        pairs = zip(self._starts, self._starts[1:], strict=False)
        return [after - before for before, after in pairs][_WARM_UP:]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock, once the device is done."""
        del trainer, batch, batch_idx
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._starts.append(self._clock())


class Contestant:
    """One way of training one workload, ready to make steps.

    Args:
        workload: What is trained.
        built: Module and callbacks.
        accelerator: Of the trainer.
        clock: See :class:`StepTimes`.
    """

    def __init__(
        self, workload: Workload, built: Built, *, accelerator: str = "cpu", clock: str = "wall"
    ) -> None:
        self._module, self._callbacks = built
        self._batch = workload.batch()
        self._accelerator, self._clock = accelerator, clock

    def fit(self, steps: int, *callbacks: pl.Callback) -> None:
        """Make some steps on the same batch.

        Args:
            steps: How many.
            callbacks: Who watches.
        """
        trainer = pl.Trainer(
            accelerator=self._accelerator,
            devices=1,
            max_epochs=1,
            callbacks=[*self._callbacks, *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        same: Any = [self._batch] * steps
        trainer.fit(self._module, DataLoader(same, batch_size=None))

    def seconds(self, steps: int) -> float:
        """Return the median time of a step.

        Args:
            steps: How many are counted.
        """
        times = StepTimes(self._clock)
        self.fit(steps + _WARM_UP + 1, times)
        return median(times.seconds)

    def flops(self) -> int:
        """Count the floating-point operations of a step."""
        return counted(lambda: self.fit(1))

    def peak_bytes(self) -> int:
        """Return the most that a step allocates beyond what is held between steps."""
        if self._accelerator != "cpu":
            return _cuda_peak(lambda: self.fit(2))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.fit(1)
        assert profiler.profiler is not None
        events = profiler.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        held = peak = 0
        for _, change in sorted(changes, key=lambda pair: pair[0]):
            held += change
            peak = max(peak, held)
        return int(peak)


def alternate(
    contestants: Mapping[str, Contestant], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Let all take turns, so that whatever else the machine does meets them alike.

    Args:
        contestants: Who takes part.
        rounds: How often everybody has a turn.
        seconds: About how long a turn lasts.

    Returns:
        For each, the median time of a step in every round.
    """
    with quiet():
        steps = {}
        for name, contestant in contestants.items():
            one = contestant.seconds(1)
            steps[name] = max(1, min(200, round(seconds / one) - _WARM_UP))
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, contestant in contestants.items():
                times[name].append(contestant.seconds(steps[name]))
    return times


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the trainers from announcing themselves.

    Yields:
        Nothing.
    """
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _cuda_peak(run: Any) -> int:
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return int(torch.cuda.max_memory_allocated() - before)
