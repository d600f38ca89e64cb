"""What the chosen matching costs on the user's own student: measured, not promised.

A copy of the observed module runs as it is and with the terms, on the first batch, behind the step
and outside its remedies: fused kernels that the terms do without count for the plain side.
"""

import copy
import math
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lightning_sobolev import _paths
from lightning_sobolev.draws import Draws
from lightning_sobolev.objective import RunningScales, weighted_sum
from lightning_sobolev.plugin.compiled import Choices
from lightning_sobolev.plugin.matching import evaluate
from lightning_sobolev.plugin.observation import Observation, observed_call
from lightning_sobolev.plugin.policy import Policy
from lightning_sobolev.plugin.probing import make_probe
from lightning_sobolev.plugin.protect import sharded_parts
from lightning_sobolev.plugin.select import select_output

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


class CostMeter:
    """Keeps what a step observed and measures when the step is over and its graph is gone."""

    def __init__(self) -> None:
        self.cost: Cost | None = None
        self._kept: tuple[Observation, Any, Draws] | None = None

    def keep(self, seen: Observation, batch: Any, draws: Draws) -> None:
        """Keep a call's arguments without their graph."""
        inputs = _paths.map_tensors(seen.inputs, Tensor.detach)
        bare = replace(seen, inputs=inputs, x=seen.x.detach(), y=seen.y.detach(), pushed=None)
        self._kept = (bare, batch, draws)

    def forget(self) -> None:
        """Drop what was kept: the step did not come to its end."""
        self._kept = None

    @rank_zero_only
    def measure(self, policy: Policy, precision: Callable[[], AbstractContextManager[Any]]) -> None:
        """Measure once and say what came out; a student that cannot be measured is said to be."""
        kept, self._kept = self._kept, None
        if kept is None or sharded_parts(kept[0].module):
            return
        try:
            with precision():
                self.cost = measure(*kept, policy)
        except (RuntimeError, TypeError, ValueError) as problem:  # memory may be short, for one
            rank_zero_info(f"Sobolev doctor: the cost was not measured: {problem}")
            return
        rank_zero_info(f"Sobolev doctor: with the terms the student takes {self.cost}")


def measure(seen: Observation, batch: Any, draws: Draws, policy: Policy) -> Cost:
    """Measure what the terms of one step add."""
    module: nn.Module = copy.deepcopy(getattr(seen.module, "_orig_mod", seen.module))
    device = seen.x.device
    devices = [device] if device.type == "cuda" else []

    copied = replace(seen, module=module)
    plain = partial(_run, copied, None, draws, policy)
    matched = partial(_run, copied, (batch,), draws, policy)
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        peaks = [_peak(work) for work in (plain, matched)]  # warms up, too
        rounds: list[list[float]] = []
        while len(rounds) < _ROUNDS and sum(map(sum, rounds)) < _ENOUGH_SECONDS:
            rounds.append([_seconds(work, device) for work in (plain, matched)])
    seconds = [min(times) for times in zip(*rounds, strict=True)]
    return Cost(*seconds, *peaks)


def _run(seen: Observation, batch: tuple[Any] | None, draws: Draws, policy: Policy) -> None:
    parameters = [p for p in seen.module.parameters() if p.requires_grad]
    if batch is None:
        filled = seen.place.fill(seen.inputs, seen.x)
        result = seen.module(*filled["args"], **filled["kwargs"])
        y = select_output(result, seen.probe.output)
        torch.autograd.grad(y.float().square().mean(), parameters, allow_unused=True)
        return
    # A schedule may begin at zero, where a term costs nothing yet.
    weights = {term.key: float(term.weight != 0.0) for term in policy.spec.terms}
    probe = make_probe(policy, draws)
    if policy.only_again:
        probe = replace(probe, engine="tape")
    point = seen.x.clone().requires_grad_()
    with policy.protected():
        now, _ = observed_call(seen.module, seen.module, seen.inputs, seen.place, point, probe)
        with torch.autocast(point.device.type, enabled=False):
            outcome = evaluate(
                [now],
                batch[0],
                Choices(policy, draws, weights),
                RunningScales(),
                lambda total: total,
            )
        loss = now.y.float().square().mean()
        if outcome.terms:
            loss = loss + weighted_sum(outcome.terms, weights)
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
