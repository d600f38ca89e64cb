"""A frozen network as the target function."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import BatchFn, Jet, Query, Teacher, identity
from lightning_sobolev.functional.derivatives import tape_jet

_NAME = "the teacher's output"
_IS_TRAINING = attrgetter("training")


def _outside_of_autocast(answer: BatchFn, device: str) -> BatchFn:
    def function(point: Tensor) -> Tensor:
        with torch.autocast(device, enabled=False):
            return answer(point)

    return function


class NetworkTeacher(Teacher):
    """A frozen network that answers with its value and its derivatives at x.

    The network is put into eval mode and its parameters no longer require gradients. The teacher is
    not a module, so it never enters the student's parameters, checkpoints or optimizers; a module
    may hold the network itself. Parts that somebody puts into train mode later are in eval mode
    while the teacher answers, and behind it as they were. It answers in its own precision, outside
    autocast, and the answer is cast to the student's dtype.

    Cost: one forward pass a batch, one backward pass for each projection.

    Args:
        network: Any module that maps what the student's observed module takes to its output.
        output: Key path of the matched tensor when the network returns a tuple or a dict; None
            follows the student's own path, or takes the first tensor with as many rows as x.
        takes: ``"call"`` calls the network as the student was called, with masks and conditions;
            ``"input"`` with the observed input alone; ``"auto"`` as the student where the network
            takes all of its arguments under the same names, else with the input alone.

    Attributes:
        was_trainable: Whether a parameter required gradients before.

    Raises:
        ValueError: If ``network`` is not a module, or ``takes`` is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        output: str | int | None = None,
        takes: Literal["auto", "input", "call"] = "auto",
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        require(takes in ("auto", "input", "call"), "takes", "'auto', 'input' or 'call'", takes)
        self.takes = takes
        self.was_trainable = any(p.requires_grad for p in network.parameters())
        self.network = network.eval().requires_grad_(False)
        self._output = None if output is None else _paths.parse(output)
        self._parts = list(network.modules())
        floats = (p for p in network.parameters() if p.is_floating_point())  # not packed integers
        self._first = next(floats, None)

    def to(self, device: torch.device | str) -> Self:
        """Move the network; a callback is not moved by the trainer."""
        self.network.to(device)
        return self

    def check_apart(self, module: nn.Module, target: str | None) -> None:
        """Refuse a network that is the student, all of ``module`` or its part ``target``.

        A module may hold its teacher, beside the student and not trained with it.

        Raises:
            ValueError: If they share parameters that were trained.
        """
        student = module if target is None else module.get_submodule(target)
        own = {id(parameter) for parameter in student.parameters()}
        shared = [n for n, p in self.network.named_parameters() if id(p) in own]
        inside = target is None and any(part is self.network for part in module.modules())
        if shared and not (inside and not self.was_trainable):
            raise ValueError(
                "teacher must not share parameters with the student, which it froze; got "
                f"{len(shared)} shared ones, first {shared[0]!r}; pass copy.deepcopy(network), or, "
                "for a teacher that the module holds beside its student, name the student with "
                "module= or call requires_grad_(False) on the teacher before"
            )

    def at(self, query: Query) -> Jet:
        """Return the jet of ``on(network)`` at ``x``; one forward pass."""
        network, call, takes = self.network, query.call, self.takes
        if takes == "call" and call is None:
            raise ValueError("takes='call' needs the student's call in the query, got call=None")
        ask: Callable[[Tensor], Any] = network
        is_auto = takes == "auto" and not query.alone  # the input alone is asked for as such
        if call is not None and (takes == "call" or (is_auto and call.accepts(network))):
            ask = partial(call.repeat, network)
        output = None if call is None else call.output
        x = query.x
        answer = self._answered_by(ask, query.on, x.dtype, output, query.outputs)
        if torch.is_autocast_enabled(x.device.type):
            answer = _outside_of_autocast(answer, x.device.type)
        # Walking a tree of modules at every question takes longer than the list of its parts.
        training = list(
            filter(_IS_TRAINING, network.modules() if network.training else self._parts)
        )
        if not training:
            return tape_jet(answer, query.x)
        for module in training:
            module.training = False
        try:
            return tape_jet(answer, query.x)
        finally:
            for module in training:
                module.training = True

    def function(
        self, on: BatchFn, dtype: torch.dtype, output: Sequence[str | int] | None = None
    ) -> BatchFn:
        """Return ``on(network)`` of the input alone, for a compiler; it puts the network to eval.

        Results are of type ``dtype``; ``output`` is the student's path, as :meth:`at` follows it.
        """
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        return self._answered_by(self.network, on, dtype, output, None)

    def _answered_by(
        self, ask: Callable[[Tensor], Any], on: BatchFn, dtype: torch.dtype,
        output: Sequence[str | int] | None, rows: int | None,
    ) -> BatchFn:  # fmt: skip
        own = dtype if self._first is None else self._first.dtype

        def answer(point: Tensor) -> Tensor:
            y = ask(point if point.dtype == own else point.to(own))
            is_answer = isinstance(y, Tensor) and y.is_floating_point()
            if self._output is not None or not is_answer:
                y = self._select(y, output, point.shape[0] if rows is None else rows)
            if on is not identity:
                y = on(y.to(torch.promote_types(y.dtype, dtype)))
            answered: Tensor = y if y.dtype == dtype else y.to(dtype)
            return answered

        return answer

    def _select(self, result: Any, students: Sequence[str | int] | None, rows: int) -> Tensor:
        if self._output is not None:
            selected = _paths.get(result, self._output, _NAME)
            if not isinstance(selected, Tensor) or not selected.is_floating_point():
                got = _paths.describe(selected)
                raise ValueError(f"{_NAME} must be a floating-point tensor, got {got}")
            return selected
        followed = None if students is None else _followed(result, tuple(students))
        if followed is not None:
            return followed
        path = _paths.first_float(result, rows)
        if path is None:
            got = _paths.describe(result)
            raise ValueError(f"{_NAME} must hold a floating-point tensor of {rows} rows, got {got}")
        found: Tensor = _paths.get(result, path, _NAME)
        return found


def _followed(result: Any, path: _paths.Path) -> Tensor | None:
    try:
        found = _paths.get(result, path, _NAME)
    except ValueError:  # the teacher's output has another structure
        return None
    is_one = isinstance(found, Tensor) and found.is_floating_point() and found.ndim > 0
    return found if is_one else None
