"""When a number on the device is looked at: at once, or without making anybody wait for it.

Looking at a number (``float(tensor)``) makes the host wait for everything that the device still has
to do, and the device then for the host. On a CPU it costs nothing. All numbers of an evaluation are
therefore looked at together, and elsewhere than on a CPU one step later.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Check = tuple[Tensor, Callable[[float], None]]
"""A scalar tensor, and who is told its number; that may raise or warn."""


@dataclass(slots=True)
class Checks:
    """Reads at once where that is free; elsewhere copies numbers and reads them a step later."""

    waiting: list[tuple[Tensor, torch.cuda.Event | None, list[Callable[[float], None]]]] = field(
        default_factory=list
    )

    def settle(self, pending: Sequence[Check]) -> None:
        """Tell everybody their number when it is there."""
        if not pending:
            return
        numbers = [number.detach() for number, _ in pending]
        kinds = {number.dtype for number in numbers}
        if len(kinds) > 1:
            wide = torch.float64 if torch.float64 in kinds else torch.float32
            numbers = [number.to(wide) for number in numbers]
        stacked, judges = torch.stack(numbers), [judge for _, judge in pending]
        if is_free(stacked.device):
            for judge, number in zip(judges, stacked.tolist(), strict=True):
                judge(float(number))
            return
        copy, event = stacked.to("cpu", non_blocking=True), None
        if stacked.is_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self.waiting.append((copy, event, judges))

    def flush(self) -> None:
        """Tell what was left waiting; by now the device has long passed where it was copied."""
        waiting, self.waiting = self.waiting, []
        for copy, event, judges in waiting:
            if event is not None:
                event.synchronize()
            for judge, number in zip(judges, copy.tolist(), strict=True):
                judge(float(number))

    def forget(self) -> None:
        """Drop what is waiting: an exception is under way already."""
        self.waiting = []


def is_free(device: torch.device) -> bool:
    """Whether looking at a number of this device makes nobody wait."""
    return device.type == "cpu"
