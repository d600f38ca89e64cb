"""One call of the student: where its input and output stand, and how it is made once more.

Note [replay]
    A derivative that the step's own forward cannot give (a part of the rows, more digits, batch
    norms in eval mode, the second evaluation of a function) comes from a replay: the same weights,
    modes, buffers, arguments, hooks and random numbers as at the call. Nothing of it stays behind:
    buffers, modes and generators are what they were. What cannot be replayed is refused.

Note [half precision]
    A bfloat16 forward leaves the derivative three digits: close to its target the term trains on
    noise. float16 adds underflow: the loss scaler does not multiply the inner backward pass. Such a
    call is replayed outside autocast, on float32 copies of half parameters; gradients reach the
    parameters through the copies.
"""

import functools
import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import Groups
from lightning_sobolev.functional.precision import InnerPrecision
from lightning_sobolev.observe.places import Forward, Inputs, Place, dressed, undressed
from lightning_sobolev.observe.remedies import Remedies, sharded_parts

_HALF = (torch.float16, torch.bfloat16)
_AS_IT_IS = (
    "False where a call with other weights (functional_call), in half precision or with forward "
    "pre-hooks is made once more"
)


@dataclass(frozen=True, slots=True, eq=False)
class ReplayOptions:
    """How a call is replayed."""

    inner_precision: InnerPrecision = "float32"
    batch_norm_in_eval: bool = False
    remedies: Remedies = field(default_factory=Remedies)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What a call depends on beside its arguments, as it was when the call began."""

    weights: dict[str, tuple[Tensor, int]]
    buffers: dict[str, Tensor]
    modes: list[tuple[nn.Module, bool]]
    random: tuple[Tensor, Any, Any]
    device_random: Tensor | None
    autocast: tuple[bool, torch.dtype]

    @classmethod
    def take(cls, module: nn.Module, device: torch.device) -> "Snapshot":
        """Note weights with their versions and clone what a forward may write."""
        named = module.named_parameters(remove_duplicate=False)
        kind = device.type
        return cls(
            {name: (tensor, tensor._version) for name, tensor in named},
            {n: b.clone() for n, b in module.named_buffers(remove_duplicate=False)},
            [(part, part.training) for part in module.modules()],
            (torch.get_rng_state(), random.getstate(), np.random.get_state()),
            torch.cuda.get_rng_state(device) if kind == "cuda" else None,
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        )


@dataclass(slots=True, eq=False)
class Call:
    """One observed call of a module.

    Args:
        module: What was called.
        forward: Its own ``forward``.
        inputs: The arguments ``forward`` got, the observed input replaced by its snapshot.
        place: Where the observed input stands among them.
        alone: Whether the observed input was the only argument, given by position.
        output: Key path of the matched tensor in the result.
        outer: The arguments before the module's own forward pre-hooks; None where it has none.
        direct: Whether ``module.forward`` was called, past its hooks.
        snapshot: What a replay needs; None where none was foreseen.
        inserting: Lets the module's next forward take a point in the observed input's place.
        index: Number of the group of each node, where input rows belong to groups.
        groups: Which output row each input row belongs to, where that is not its own.
        rows: Numbers of the input rows among those of the batch; None for all.
    """

    module: nn.Module
    forward: Forward
    inputs: Inputs
    place: Place
    inserting: Callable[["Call", Tensor], AbstractContextManager[None]]
    alone: bool = False
    output: _paths.Path = ()
    outer: Inputs | None = None
    direct: bool = False
    snapshot: Snapshot | None = None
    copies: dict[str, Tensor] | None = None
    index: Tensor | None = None
    groups: Groups | None = None
    rows: Tensor | None = None

    def keep_inputs(self, x: Tensor, like: Tensor) -> None:
        """Keep the arguments as they are now: the step may write into them after the call."""
        own = _paths.map_tensors(self.inputs, _kept)
        self.inputs = self.place.fill(own, dressed(x.detach(), like))
        if self.outer is not None:
            self.outer = _paths.map_tensors(self.outer, _kept)

    def cut_to(self, cut: "Cut") -> "Call":
        """Return the call with some rows of the arguments that have them, for :meth:`repeat`."""
        if isinstance(cut, GroupCut):
            return replace(
                self, inputs=cut.take(self.inputs), index=cut.index, groups=cut.groups,
                rows=cut.numbers,
            )  # fmt: skip
        if self.alone:
            return self
        return replace(self, inputs=cut.take(self.inputs))

    def describe_input(self, x: Tensor) -> str:
        """Say in a few words which input is observed: ``x: args.0 [8, 3]``."""
        named = [path[1:] if path[0] == "kwargs" else path for path in self.place.paths]
        paths = " + ".join(".".join(map(str, path)) for path in named)
        return f"x: {paths} {list(x.shape)}"

    def accepts(self, network: nn.Module) -> bool:
        """Whether there is more to repeat than the input, and ``network`` takes it by name."""
        if self.alone:
            return False
        count, names = len(self.inputs["args"]), tuple(self.inputs["kwargs"])
        return _accepts(self.forward, network.forward, count, names)

    def repeat(self, network: nn.Module, point: Tensor) -> Any:
        """Call another network as the student was called, in the precision of ``point``."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.detach().to(point.dtype) if tensor.is_floating_point() else tensor

        filled = self.place.fill(_paths.map_tensors(self.inputs, cast), point)
        return network(*filled["args"], **filled["kwargs"])

    def replay(
        self, point: Tensor, options: ReplayOptions, cut: "Cut | None" = None,
        evaluate: Callable[[Inputs], Any] | None = None,
    ) -> Any:  # fmt: skip
        """Make the call once more with ``point`` in the observed input's place.

        ``cut`` takes the same rows from the other arguments that ``point`` has; ``evaluate`` is
        called with the arguments instead of the module, under the same circumstances.

        Returns:
            What the module returns, or ``evaluate``.

        Raises:
            ValueError: If a weight was changed in place since the call.
        """
        snapshot = self.snapshot
        assert snapshot is not None
        inputs = self.inputs if self.outer is None else self.outer
        inputs = inputs if cut is None else cut.take(inputs)
        if is_half(self.module) and not sharded_parts(self.module):
            inputs = widened(inputs)
        weights = self._other_weights(snapshot)
        with ExitStack() as stack:
            stack.enter_context(_same_random_numbers(snapshot, point.device))
            stack.enter_context(_modes(snapshot.modes, options.batch_norm_in_eval))
            stack.enter_context(_buffers(self.module, self._own_buffers(snapshot, options)))
            if evaluate is not None:
                require(not weights and self.outer is None, "compile", _AS_IT_IS, True)
                return evaluate(inputs)
            stack.enter_context(self._precision(options, point.device.type))
            stack.enter_context(options.remedies)
            stack.enter_context(self.inserting(self, point))
            return self._called(inputs, weights)

    def _called(self, inputs: Inputs, weights: dict[str, Tensor]) -> Any:
        args, kwargs = inputs["args"], inputs["kwargs"]
        module: nn.Module = _Direct(self.module) if self.direct else self.module
        if not weights:
            return module(*args, **kwargs)
        prefix = "module." if self.direct else ""
        named = {prefix + name: tensor for name, tensor in weights.items()}
        with _default_dtype(torch.float32 if self.copies else torch.get_default_dtype()):
            return functional_call(module, named, args, kwargs)

    def _other_weights(self, snapshot: Snapshot) -> dict[str, Tensor]:
        # Those of the call that are not the module's own any more (functional_call), and float32
        # copies of those in half precision.
        present = dict(self.module.named_parameters(remove_duplicate=False))
        other = {}
        for name, (tensor, version) in snapshot.weights.items():
            if tensor._version != version:
                raise ValueError(
                    f"weight {name!r} of the observed call must not be changed in place before the "
                    "term is evaluated (an optimizer step inside of training_step?): the call "
                    "cannot be made once more; got another version of it"
                )
            if present.get(name) is not tensor:
                other[name] = tensor
        if not sharded_parts(self.module):  # shards cannot be copied
            other.update(self._single(snapshot))
        return other

    def _single(self, snapshot: Snapshot) -> dict[str, Tensor]:
        # Once: the gradients of several replays are summed before they are rounded.
        if self.copies is None:
            half = {n: t for n, (t, _) in snapshot.weights.items() if t.dtype in _HALF}
            single = {id(tensor): tensor.float() for tensor in half.values()}  # tied ones stay so
            self.copies = {name: single[id(tensor)] for name, tensor in half.items()}
        return self.copies

    def _own_buffers(self, snapshot: Snapshot, options: ReplayOptions) -> dict[str, Tensor]:
        wide, buffers = not sharded_parts(self.module), dict(snapshot.buffers)
        if options.batch_norm_in_eval:  # as an evaluation would see them now
            for prefix, norm in self.module.named_modules():
                if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                    path = f"{prefix}." if prefix else ""
                    buffers.update({path + n: b for n, b in norm.named_buffers(recurse=False)})
        return {
            name: buffer.float() if wide and buffer.dtype in _HALF else buffer.clone()
            for name, buffer in buffers.items()
        }

    def _precision(self, options: ReplayOptions, device: str) -> torch.autocast:
        assert self.snapshot is not None
        enabled, dtype = self.snapshot.autocast
        if options.inner_precision == "step":
            return torch.autocast(device, dtype=dtype, enabled=enabled)
        low = options.inner_precision == "bf16-mixed"
        return torch.autocast(device, dtype=torch.bfloat16, enabled=low)


def _kept(tensor: Tensor) -> Tensor:
    return dressed(undressed(tensor).clone(), tensor)


@functools.lru_cache(maxsize=16)
def _accepts(own: Forward, other: Forward, count: int, names: tuple[str, ...]) -> bool:
    mine, theirs = (inspect.signature(forward).parameters for forward in (own, other))
    positional = list(mine)[:count]
    takes_all = any(p.kind is p.VAR_KEYWORD for p in theirs.values())
    in_order = len(positional) == count and list(theirs)[:count] == positional
    if not in_order and count == 1 and not names:
        return True  # one structure by position, whatever it is called
    return in_order and all(takes_all or name in theirs for name in names)


class _Direct(nn.Module):
    # Calls forward itself, past the hooks, as the step did.
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class RowCut:
    """Rows, and the arguments that have them: key path and axis."""

    rows: Tensor
    axes: dict[_paths.Path, int]

    def take(self, inputs: Inputs) -> Inputs:
        """Return a copy of the arguments with the chosen rows."""
        for path, axis in self.axes.items():
            tensor: Tensor = _paths.get(inputs, path, "row_axes")
            inputs = _paths.put(
                inputs, path, tensor.index_select(axis, self.rows.to(tensor.device))
            )
        return inputs


@dataclass(frozen=True, slots=True, eq=False)
class GroupCut:
    """Some groups: their input rows, and what they are among themselves.

    Args:
        rows: Which rows of the observed input they have.
        numbers: The numbers of these rows in their own inputs, of which several may stand below one
            another.
        groups: The chosen groups, numbered anew.
        index: Number of the group of each node that is left.
        take: Makes the arguments of the chosen groups.
    """

    rows: Tensor
    numbers: Tensor
    groups: Groups
    index: Tensor
    take: Callable[[Inputs], Inputs]


Cut = RowCut | GroupCut


def is_half(module: nn.Module) -> bool:
    """Whether parameters or buffers are in half precision."""
    return any(t.dtype in _HALF for t in (*module.parameters(), *module.buffers()))


def widened(tree: Any) -> Any:
    """Return ``tree`` with its half-precision tensors in float32."""
    return _paths.map_tensors(tree, lambda t: t.float() if t.dtype in _HALF else t)


@contextmanager
def _same_random_numbers(snapshot: Snapshot, device: torch.device) -> Iterator[None]:
    devices = [device] if snapshot.device_random is not None else []
    own, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(snapshot.random[0])
        random.setstate(snapshot.random[1])
        np.random.set_state(snapshot.random[2])
        if snapshot.device_random is not None:
            torch.cuda.set_rng_state(snapshot.device_random, device)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)


@contextmanager
def _modes(modes: Sequence[tuple[nn.Module, bool]], batch_norm_in_eval: bool) -> Iterator[None]:
    before = [(module, module.training) for module, _ in modes]
    for module, training in modes:
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        module.training = training and not (batch_norm_in_eval and is_norm)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def _buffers(module: nn.Module, stand_ins: dict[str, Tensor]) -> Iterator[None]:
    # Copies stand in; writing old values back would be an in-place change of what the first forward
    # saved for its backward.
    kept = [(part, dict(part._buffers)) for part in module.modules() if part._buffers]
    for name, buffer in stand_ins.items():
        owner, _, own_name = name.rpartition(".")
        module.get_submodule(owner)._buffers[own_name] = buffer
    try:
        yield
    finally:
        for part, buffers in kept:
            part._buffers.clear()
            part._buffers.update(buffers)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()  # half-precision trainers make it theirs
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
