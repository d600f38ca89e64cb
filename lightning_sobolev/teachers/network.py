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
from lightning_sobolev.teachers.inputs import BatchInputs, Inputs, check_convert

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
        inputs: Key paths into the batch, for a network that sees other things than the student: its
            arguments in order, or by name in a mapping. A list in the place of a path is one
            argument, joined along the last axis: ``[["policy", "privileged"]]``.
        shared: Which of the paths is the input that the student observes. The network gets that
            observed input in its place, which is what derivatives are taken in; all others are
            constants. May be left out where there is one path alone.
        convert: Maps the observed input to the network's own, ``f(x)``: other units, a part of
            them. Beside ``inputs`` it also gets the batch's tensor at ``shared``, ``f(x, held)``,
            and returns one of the same shape. The teacher is the network behind it: derivatives
            follow by the chain rule.
        answer: Maps the network's output to the student's, in front of the spec's output map.

    Attributes:
        was_trainable: Whether a parameter required gradients before.

    Raises:
        ValueError: If ``network`` is not a module, ``takes`` is none of these or named beside
            ``inputs``, ``shared`` is none of these, or ``convert`` does not take what it gets.

    Example:
        >>> net = torch.nn.Linear(5, 2)
        >>> teacher = NetworkTeacher(net, inputs=[["obs", "height"]], shared="obs")
        >>> batch = {"obs": torch.ones(4, 3), "height": torch.zeros(4, 2)}
        >>> teacher.at(Query(batch["obs"], batch=batch)).vjp(torch.ones(1, 4, 2)).shape
        torch.Size([1, 4, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        output: str | int | None = None,
        takes: Literal["auto", "input", "call"] = "auto",
        *,
        inputs: Inputs | None = None,
        shared: str | int | None = None,
        convert: Callable[..., Tensor] | None = None,
        answer: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module, got {type(network).__name__}")
        require(takes in ("auto", "input", "call"), "takes", "'auto', 'input' or 'call'", takes)
        self.takes, self.convert, self.answer = takes, convert, answer
        self.inputs = self._parsed(inputs, shared)
        self.was_trainable = any(p.requires_grad for p in network.parameters())
        self.network = network.eval().requires_grad_(False)
        self._output = None if output is None else _paths.parse(output, "output")
        self.networks = (self.network,)
        self._parts = list(network.modules())
        floats = (p for p in network.parameters() if p.is_floating_point())  # not packed integers
        self._first = next(floats, None)

    def _parsed(self, inputs: Inputs | None, shared: str | int | None) -> BatchInputs | None:
        if inputs is None:
            require(shared is None, "shared", "None without inputs=", shared)
            return None
        require(self.takes == "auto", "takes", "'auto' beside inputs=", self.takes)
        if self.convert is not None:
            check_convert(self.convert)
        return BatchInputs.parse(inputs, shared)

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
        x, enter = query.x, self.convert
        if self.inputs is not None:
            found = self.inputs.look_up(query, self._own(x.dtype))
            ask, enter = partial(found.call, network), partial(found.enter, self.convert)
        elif call is not None and (takes == "call" or (is_auto and call.accepts(network))):
            ask = partial(call.repeat, network)
        output = None if call is None else call.output
        answer = self._answered_by(ask, query.on, x.dtype, output, query.outputs)
        if enter is not None:
            answer = self._behind(enter, answer, x.dtype)
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

        Not for a teacher with ``inputs``: they are looked up for each query.

        Results are of type ``dtype``; ``output`` is the student's path, as :meth:`at` follows it.
        """
        if any(module.training for module in self.network.modules()):
            self.network.eval()
        answer = self._answered_by(self.network, on, dtype, output, None)
        return answer if self.convert is None else self._behind(self.convert, answer, dtype)

    def _own(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self._first is None else self._first.dtype

    def _behind(
        self, enter: Callable[[Tensor], Tensor], answer: BatchFn, dtype: torch.dtype
    ) -> BatchFn:
        # A change of units is rounded once, where the network rounds.
        wide = torch.promote_types(self._own(dtype), dtype)
        return lambda point: answer(enter(point.to(wide)))

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
            if self.answer is not None:
                y = self.answer(y.to(torch.promote_types(y.dtype, dtype)))
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


def as_teacher(teacher: object, name: str = "teacher") -> Teacher:
    """Return a teacher as it is and a module in a :class:`NetworkTeacher`.

    Raises:
        ValueError: If ``teacher``, which messages call ``name``, is neither module nor teacher.
    """
    if isinstance(teacher, nn.Module):
        return NetworkTeacher(teacher)
    if not isinstance(teacher, Teacher):
        raise ValueError(
            f"{name} must be a Teacher or a module, got {type(teacher).__name__}; derive it from "
            "lightning_sobolev.Teacher"
        )
    return teacher
