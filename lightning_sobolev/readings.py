"""When a number on the device is looked at: at once, or without making anybody wait for it.

Looking at a number (``float(tensor)``) makes the host wait for everything that the device still has
to do, and the device then for the host. On a CPU it costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Judge = Callable[[float], None]
"""Is told the number; may raise or warn."""

Reader = Callable[[Tensor, Judge], None]
"""Tells a judge the number of a scalar tensor, now or later."""


def at_once(number: Tensor, judge: Judge) -> None:
    """Look at the number here and now."""
    judge(float(number.detach()))


def is_free(device: torch.device) -> bool:
    """Whether looking at a number of this device makes nobody wait."""
    return device.type == "cpu"


@dataclass(slots=True)
class Readings:
    """Reads at once where that is free; elsewhere copies the number and reads it a step later."""

    waiting: list[tuple[Tensor, torch.cuda.Event | None, Judge]] = field(default_factory=list)

    def later(self, number: Tensor, judge: Judge) -> None:
        """Tell ``judge`` the number of a scalar tensor when it is there; a :data:`Reader`."""
        if is_free(number.device):
            at_once(number, judge)
            return
        copy = number.detach().to("cpu", non_blocking=True)
        event = None
        if number.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.waiting.append((copy, event, judge))

    def flush(self) -> None:
        """Tell what was left waiting; by now the device has long passed where it was copied."""
        waiting, self.waiting = self.waiting, []
        for copy, event, judge in waiting:
            if event is not None:
                event.synchronize()
            judge(float(copy))

    def forget(self) -> None:
        """Drop what is waiting: an exception is under way already."""
        self.waiting = []
