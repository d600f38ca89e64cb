"""One observed call: where it was made, with what, and its jet."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, Jet
from lightning_sobolev.compared import Matched
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from lightning_sobolev.plugin.precision import mapped, runs_in_half, widened
from lightning_sobolev.plugin.select import Forward, Inputs, Place, Wrt, select_output


@dataclass(frozen=True)
class Probe:
    """What to observe of a call and how to differentiate it."""

    wrt: Wrt
    output: str | int | None
    on: BatchFn
    engine: str
    tangents: Callable[[Tensor], Tensor | None]  # of forward mode, once the input is known
    precise: bool = False  # a call in half precision is looked at, not differentiated
    compiled: "CompiledCall | None" = None


CompiledCall = Callable[[nn.Module, Inputs, Place, Tensor, Probe], "tuple[Observation, Any] | None"]
"""Observes a call; None where it does not compile and the tape may stand in."""


@dataclass(eq=False)
class Observation:
    """One observed call: of what, with what, and its jet."""

    module: nn.Module
    inputs: Inputs
    place: Place
    probe: Probe
    x: Tensor
    y: Tensor  # before the output map
    tangents: Tensor | None = None
    pushed: FuncJet | None = None  # the func engine's jet, there when the call is over
    coarse: bool = False  # ran in half precision where a precise call is wanted
    matched: dict[int, Matched] | None = None  # terms that the call evaluated itself, by number

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.x.shape[0]

    def jet(self) -> Jet:
        """The jet of ``on(module)`` at the observed input; no further forward pass."""
        if self.pushed is not None:
            return self.pushed
        return TapeJet(mapped(self.probe.on, self.y, self.x), self.x)

    def call(self, network: nn.Module, point: Tensor) -> Any:
        """Call another network as the student was called, in the precision of ``point``."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.detach().to(point.dtype) if tensor.is_floating_point() else tensor

        filled = self.place.fill(_paths.map_tensors(self.inputs, cast), point)
        return network(*filled["args"], **filled["kwargs"])

    def again(self, rows: Tensor | None, forward: Forward, probe: Probe) -> "Observation":
        """Evaluate the module once more, in at least float32."""
        x, inputs = self.x, self.inputs
        if rows is not None:
            x, inputs = x[rows], _paths.take_rows(inputs, rows, self.size)
        x, probe = widened(self.module, x), replace(probe, precise=False)
        # x[rows] of our own leaf would hang the second graph below the first one.
        point = x if self.x.grad_fn is not None else x.detach().requires_grad_()
        seen, _ = observed_call(self.module, forward, inputs, self.place, point, probe)
        return seen


def observed_call(
    module: nn.Module, forward: Forward, inputs: Inputs, place: Place, x: Tensor, probe: Probe
) -> tuple[Observation, Any]:
    """Call ``forward`` with ``x``, a leaf that requires grad or an intermediate, in its place."""

    def run(point: Tensor) -> Any:
        filled = place.fill(inputs, point)
        return forward(*filled["args"], **filled["kwargs"])

    coarse = probe.precise and runs_in_half(module, x.device)
    if probe.compiled is not None and not coarse:
        found = probe.compiled(module, inputs, place, x, probe)
        if found is not None:
            return found
    if probe.engine == "tape" or coarse:
        # A clone is passed on: a forward that writes in place must not change the leaf.
        result = run(x.clone())
        y = with_rows(select_output(result, probe.output), x)
        return Observation(module, inputs, place, probe, x, y, coarse=coarse), result

    def run_func(point: Tensor) -> tuple[Tensor, tuple[Any, Tensor]]:
        result = run(point)
        y = with_rows(select_output(result, probe.output), x)
        return mapped(probe.on, y, x), (result, y)

    tangents = probe.tangents(x)
    jet = FuncJet(run_func, x, tangents=tangents, has_aux=True)
    result, y = jet.aux
    return Observation(module, inputs, place, probe, x, y, tangents, jet), result


def with_rows(y: Tensor, x: Tensor) -> Tensor:
    """Return ``y``, one row for each row of ``x``."""
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"output: the observed module must give one row for each of its {x.shape[0]} input "
            f"rows, got {_paths.describe(y)}; name another output= or module="
        )
    return y
