"""A frozen network as the target function."""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn, Jet, Points
from lightning_sobolev.functional.derivatives import tape_jet

Ask = Callable[[nn.Module, Tensor], Any]


def _with_the_input_alone(network: nn.Module, point: Tensor) -> Any:
    return network(point)


class NetworkTeacher:
    """A frozen network that answers with its value and its derivatives at x.

    The network is put into eval mode and its parameters no longer require gradients. The teacher is
    not a module, so it never enters the student's parameters, checkpoints or optimizers. It answers
    in its own precision, outside autocast, and the answer is cast to the student's dtype.

    Cost: one forward pass a batch, one backward pass for each projection.

    Args:
        network: Any module that maps what the student's observed module takes to its output.
        output: Key path of the matched tensor when the network returns a tuple or a dict.
        takes: ``"input"`` calls the network with the observed input alone, ``"call"`` with all
            arguments of the student's call: masks, conditions, whole batches.

    Raises:
        ValueError: If ``network`` is not a module, or ``takes`` is neither.
    """

    allows_unknown = False

    def __init__(
        self,
        network: nn.Module,
        output: str | int | None = None,
        takes: Literal["input", "call"] = "input",
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        require(takes in ("input", "call"), "takes", "'input' or 'call'", takes)
        self.takes = takes
        self.network = network.eval().requires_grad_(False)
        self._output = None if output is None else _paths.parse(output)

    def to(self, device: torch.device | str) -> Self:
        """Move the network; a callback is not moved by the trainer."""
        self.network.to(device)
        return self

    def at(self, x: Points, on: BatchFn, batch: Any = None, call: Ask | None = None) -> Jet:
        """Return the jet of ``on(network)`` at ``x``; one forward pass."""
        del batch
        ask = _with_the_input_alone if self.takes == "input" else call
        if ask is None:
            raise ValueError("takes='call' needs call=, which a SobolevCallback gives, got None")
        return tape_jet(self.function(on, x.dtype, ask), x)

    def function(
        self, on: BatchFn, dtype: torch.dtype, ask: Ask = _with_the_input_alone
    ) -> BatchFn:
        """Return ``on(network)``, asked by ``ask``, as a function with results of one type."""
        # A train() on a module that happens to hold the network must not change the target.
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        parameter = next(self.network.parameters(), None)
        own = dtype if parameter is None else parameter.dtype

        def answer(point: Tensor) -> Tensor:
            with torch.autocast(point.device.type, enabled=False):
                y = self._select(ask(self.network, point.to(own)))
                return on(y.to(torch.promote_types(y.dtype, dtype))).to(dtype)

        return answer

    def _select(self, output: Any) -> Tensor:
        path = self._output if self._output is not None else _paths.first_float(output)
        name = "the teacher's output"
        selected = output if path is None else _paths.get(output, path, name)
        if path is None or not isinstance(selected, Tensor):
            expected = "hold a floating-point tensor" if path is None else "be a tensor"
            raise ValueError(f"{name} must {expected}, got {_paths.describe(selected)}")
        return selected
