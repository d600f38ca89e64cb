"""A call of the student, kept so that a copy of it can be called alike."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev.observe.call import Cut, GroupCut, RowCut
from lightning_sobolev.observe.options import ObserveOptions
from lightning_sobolev.observe.places import Inputs, dressed, undressed
from lightning_sobolev.observe.recorder import Observed

Change = Callable[[Tensor], Tensor]


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Put every global generator back where it was, whatever happens."""
    python, numpys = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A module, the arguments of a call without their graph, and how it was observed."""

    module: nn.Module
    inputs: Inputs
    modes: tuple[bool, ...]
    options: ObserveOptions
    direct: bool
    index: Tensor | None = None

    @classmethod
    def of(cls, seen: Observed, cut: Cut | None = None) -> "Rehearsal":
        """Keep an observed call, whole or cut to some rows."""
        call = seen.call
        inputs = call.inputs if call.outer is None else call.outer
        if isinstance(cut, GroupCut):
            inputs = cut.take(inputs)
        elif cut is not None:
            own = {} if call.outer is not None else dict.fromkeys(call.place.paths, 0)
            inputs = RowCut(cut.rows, {**own, **cut.axes}).take(inputs)
        modes = [training for _, training in call.snapshot.modes] if call.snapshot else []
        kept = _paths.map_tensors(inputs, lambda t: dressed(undressed(t).detach(), t))
        # The copy is called once: whichever call it was, it is the first.
        options = replace(seen.recorder.options, call="first", engine="tape")
        index = cut.index if isinstance(cut, GroupCut) else call.index
        return cls(call.module, kept, tuple(modes), options, call.direct, index)

    def on_copy(self, change: Change = torch.clone) -> "Rehearsal":
        """Return the call on a copy of the module, parameters, buffers and arguments changed."""
        original = getattr(self.module, "_orig_mod", self.module)
        copied: nn.Module = copy.deepcopy(original, _without_graphs(original))
        copied._apply(change)  # type: ignore[no-untyped-call]
        for part, training in zip(copied.modules(), self.modes, strict=False):
            part.training = training
        changed = _paths.map_tensors(self.inputs, lambda t: dressed(change(undressed(t)), t))
        index = None if self.index is None else change(self.index)
        return replace(self, module=copied, inputs=changed, index=index)

    def call(self) -> Any:
        """Make the call."""
        called = self.module.forward if self.direct else self.module
        return called(*self.inputs["args"], **self.inputs["kwargs"])


def _without_graphs(module: nn.Module) -> dict[int, Any]:
    # torch copies no tensor that was computed; some students keep what they computed last.
    kept = [_paths.tensors(value) for part in module.modules() for value in vars(part).values()]
    computed = (tensor for found in kept for _, tensor in found if not tensor.is_leaf)
    return {id(tensor): tensor.detach().clone() for tensor in computed}
