"""Time, memory and operations of training steps inside a real Trainer, one way after the other."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from lightning_sobolev.experiments.benchmark.methods import METHODS, Built
from lightning_sobolev.experiments.benchmark.models import Workload
from lightning_sobolev.experiments.common.module import QUIET

Row = dict[str, Any]
REFERENCES = ("plain", "distillation", "at_best")
"""Methods that every workload needs: what others are compared with, and the arithmetic limit."""
_WARM_UP = 1  # steps at the beginning of every turn that are not counted


class StepTimes(pl.Callback):
    """Seconds from the start of each step to the start of the next, all of Lightning included.

    The clock is ``wall``, or ``cpu``, which is hardly moved by what others run beside it.
    """

    def __init__(self, clock: str = "wall") -> None:
        self._clock = time.process_time if clock == "cpu" else time.perf_counter
        self._starts: list[float] = []

    @property
    def seconds(self) -> list[float]:
        """What was measured after warming up."""
        return [after - before for before, after in pairwise(self._starts)][_WARM_UP:]

    def on_train_batch_start(self, _: pl.Trainer, pl_module: pl.LightningModule, *__: Any) -> None:
        """Look at the clock, once the device is done."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._starts.append(self._clock())


class Contestant:
    """One way of training one workload, ready to make steps; ``clock`` as in :class:`StepTimes`."""

    def __init__(
        self, workload: Workload, built: Built, *, accelerator: str = "cpu", clock: str = "wall"
    ) -> None:
        self.module, self._callbacks = built
        self._batch = workload.batch()
        self._accelerator, self._clock = accelerator, clock

    def fit(self, steps: int, *callbacks: pl.Callback) -> None:
        """Make some steps on the same batch, watched by further callbacks."""
        used, where = [*self._callbacks, *callbacks], self._accelerator
        trainer = pl.Trainer(accelerator=where, devices=1, max_epochs=1, callbacks=used, **QUIET)
        same: Any = [self._batch] * steps
        trainer.fit(self.module, DataLoader(same, batch_size=None))

    def seconds(self, steps: int) -> float:
        """Return the median time of so many steps."""
        times = StepTimes(self._clock)
        self.fit(steps + _WARM_UP + 1, times)
        return median(times.seconds)

    def flops(self) -> int:
        """Count the floating-point operations of a step, by torch's own counter."""
        return self._flops(2) - self._flops(1)  # the first step looks at the student, too

    def _flops(self, steps: int) -> int:
        counter = FlopCounterMode(display=False)
        # Its hooks on modules refuse autograd.grad; whose an operation is, is not asked.
        counter.mod_tracker = _NoModules()
        fast = torch.backends.mha.get_fastpath_enabled()
        # The fast path is a whole encoder layer in one operation that is not counted.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with counter:
                self.fit(steps)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return int(counter.get_total_flops())

    def peak_bytes(self) -> int:
        """Return the most that a step allocates beyond what is held between steps."""
        if self._accelerator != "cpu":
            self.fit(2)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.fit(2)
            return int(torch.cuda.max_memory_allocated() - before)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.fit(1)
        assert profiler.profiler is not None
        events = profiler.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        changes.sort(key=itemgetter(0))
        return int(max(accumulate(change for _, change in changes)))


class _NoModules(ModuleTracker):
    def __enter__(self) -> "_NoModules":
        self.parents = {"Global"}
        return self

    def __exit__(self, *args: object) -> None:
        pass


def alternate(
    contestants: Mapping[str, Contestant], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Return median times of a step in rounds, in which all take turns of about ``seconds``."""
    steps = {
        name: max(1, min(200, round(seconds / contestant.seconds(1)) - _WARM_UP))
        for name, contestant in contestants.items()
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant.seconds(steps[name]))
    return times


def measure(workload: Workload, methods: Sequence[str], cfg: Any) -> list[Row]:
    """Return a row for each method, also for one that cannot train this network."""
    where = {"accelerator": cfg.accelerator, "clock": cfg.clock}
    with tempfile.TemporaryDirectory() as folder:
        ready, refused = {}, {}
        for name in methods:
            try:
                built = METHODS[name].build(workload, Path(folder))
                contestant = Contestant(workload, built, **where)
                contestant.fit(1)
            except (RuntimeError, ValueError) as error:
                refused[name] = str(error).splitlines()[0]
            else:
                ready[name] = contestant
        times = alternate(ready, rounds=cfg.rounds, seconds=cfg.seconds)
        flops = {name: ready[METHODS[name].counted_as or name].flops() for name in ready}
        peaks = {name: one.peak_bytes() for name, one in ready.items()}
    common = {"network": workload.network, "batch": workload.batch_size, "device": cfg.accelerator}
    rows = [
        {**common, "method": name, **_numbers(name, times, flops), "peak_bytes": peaks[name]}
        for name in ready
    ]
    return rows + [{**common, "method": name, "refused": why} for name, why in refused.items()]


def _numbers(name: str, times: Mapping[str, list[float]], flops: Mapping[str, int]) -> Row:
    fewest = limits(*(flops[reference] for reference in REFERENCES))
    allowed = fewest[METHODS[name].objective] / flops["distillation"]
    numbers: Row = {"median_seconds": median(times[name]), "flops": flops[name]}
    for key, reference, factor in (
        ("ratio_to_plain", "plain", 1.0),
        ("ratio_to_distillation", "distillation", 1.0),
        ("ratio_to_best_by_hand", "at_best", 1.0),
        ("ratio_to_limit", "distillation", allowed),
    ):
        pairs = zip(times[name], times[reference], strict=True)
        # Each round's own ratio: what slowed one turn down slowed its neighbors down too.
        ratios = [own / (other * factor) for own, other in pairs]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        numbers |= {key: middle, f"{key}_quartiles": [low, high]}
    return numbers


def limits(
    plain: int, distillation: int, derivative: int, *, rows: float = 0.25
) -> Mapping[str, float]:
    """Return the fewest operations for each objective; plain and so on are the counts of steps."""
    teacher = distillation - plain  # its forward pass; its backward pass costs the same
    return {
        "plain": plain,
        "distillation": distillation,
        "derivative": derivative,
        "rows": distillation + rows * (derivative - distillation),
        "cached": derivative - 2 * teacher,
    }
