"""What the chosen matching costs on the user's own student: measured, not promised.

A copy of the observed module runs as it is and with the terms, on the first batch, behind the step
and outside its remedies: fused kernels that the terms do without count for the plain side.
"""

import math
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lightning_sobolev import _paths
from lightning_sobolev.doctor.rehearsal import Rehearsal, own_random_numbers
from lightning_sobolev.loss.loss import Occasion, SobolevLoss
from lightning_sobolev.observe.places import locate_output
from lightning_sobolev.observe.recorder import Recorder
from lightning_sobolev.observe.recorder import plain as plain_result

_ROUNDS = 10
_ENOUGH_SECONDS = 0.03
"""Rounds end here: a slow student is measured once, a quick one until its best time shows."""


@dataclass(frozen=True)
class Cost:
    """Forward and backward of the observed module, without and with the terms.

    Args:
        plain_seconds: Time without the terms; on a CPU that of all its threads.
        matched_seconds: Time with them; the teacher's own passes are part of it.
        plain_bytes: Peak of the tensors that were made, without the terms.
        matched_bytes: The same with them.
    """

    plain_seconds: float
    matched_seconds: float
    plain_bytes: int
    matched_bytes: int

    def __str__(self) -> str:
        # Under a limit of processor time (ulimit -t) the clock moves in steps longer than a pass.
        times = self.matched_seconds / self.plain_seconds if self.plain_seconds else math.nan
        memory = self.matched_bytes / self.plain_bytes
        return (
            f"{times:.1f} times the time ({1e3 * self.matched_seconds:.3g} ms instead of "
            f"{1e3 * self.plain_seconds:.3g}) and {memory:.1f} times the memory "
            f"({1e-6 * self.matched_bytes:.3g} MB instead of {1e-6 * self.plain_bytes:.3g})"
        )


def measure(rehearsal: Rehearsal, occasion: Occasion, loss: SobolevLoss) -> Cost:
    """Measure what the terms of one step add to a call of the student."""
    copied = rehearsal.on_copy()
    device = next((p.device for p in copied.module.parameters()), torch.device("cpu"))
    # A schedule may begin at zero, where a term costs nothing yet.
    terms = [replace(term, weight=float(term.weight != 0.0)) for term in loss.spec.terms]
    probe = SobolevLoss(loss.teacher, terms, on=loss.spec.on, seed=loss.seed).on_its_own()
    probe.non_finite, probe.gaps = loss.non_finite, loss.gaps
    recorder = probe.recorder_of(copied.module, None, copied.options)
    recorder.index = copied.index
    plain = partial(_run_plain, copied, recorder)
    matched = partial(_run_matched, copied, recorder, probe, occasion)
    with own_random_numbers(), torch.enable_grad():
        peaks = [_peak(work) for work in (plain, matched)]  # warms up, too
        rounds: list[list[float]] = []
        while len(rounds) < _ROUNDS and sum(map(sum, rounds)) < _ENOUGH_SECONDS:
            rounds.append([_seconds(work, device) for work in (plain, matched)])
    seconds = [min(times) for times in zip(*rounds, strict=True)]
    return Cost(*seconds, *peaks)


def _run_plain(copied: Rehearsal, recorder: Recorder) -> None:
    result, output = plain_result(copied.call()), recorder.options.output
    inputs = [tensor for _, tensor in _paths.tensors(copied.inputs) if tensor.ndim]
    path = locate_output(result, output, len(inputs[0]) if inputs else 0)
    _backward(_paths.get(result, path, "output").float().square().mean(), copied)


def _run_matched(
    copied: Rehearsal, recorder: Recorder, probe: SobolevLoss, occasion: Occasion
) -> None:
    recorder.install()
    try:
        if recorder.engine == "func":
            recorder.push = probe.push(occasion)
        recorder.start()
        copied.call()
        recorder.stop()
        seen = recorder.chosen()
        report = probe.evaluate(seen, occasion)
        with recorder.replay_options.remedies:
            _backward(seen[0].y.float().square().mean() + report.loss, copied)
    finally:
        recorder.remove()


def _backward(loss: Tensor, copied: Rehearsal) -> None:
    parameters = [p for p in copied.module.parameters() if p.requires_grad]
    torch.autograd.grad(loss, parameters, allow_unused=True)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    # Processor time does not count what other processes of a busy machine took.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    _wait_for(device)
    started = clock()
    work()
    _wait_for(device)
    return clock() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(work: Callable[[], None]) -> int:
    with PeakMemory() as memory:
        work()
    peak: int = memory.peak
    return peak


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is entered, the same on any device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._take_in, result)
        return result

    def _take_in(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self._alive:
            self.current += size
            self.peak = max(self.peak, self.current)
            self._alive[address] = weakref.finalize(storage, self._free, address, size)

    def _free(self, address: int, size: int) -> None:
        self._alive.pop(address, None)
        self.current -= size
