"""The observed forward: the student's own call, recorded while a step runs.

A shadowed ``forward`` catches ``self(x)``, ``self.forward(x)`` and calls of submodules alike; it is
put on once and switched by a flag. The chosen input becomes a leaf that requires grad, and (x, y)
is kept as it was when the call returned: no second student forward, and the dropout masks of value
and derivative agree.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._groups import Block, check_told_apart, grouped
from lightning_sobolev._types import BatchFn, Jet, identity
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from lightning_sobolev.observe.call import Call, Cut, ReplayOptions, Snapshot, is_half
from lightning_sobolev.observe.options import ObserveOptions
from lightning_sobolev.observe.places import (
    FIRST,
    Inputs,
    carry_back,
    check_differs,
    dressed,
    locate,
    locate_groups,
    locate_output,
    no_rows,
    select_output,
    undressed,
)
from lightning_sobolev.observe.remedies import sharded_parts
from lightning_sobolev.observe.rows import RowAxes
from lightning_sobolev.observe.shadow import Passing, Shadow

Push = Callable[["Call", Tensor, int], Tensor | None]
"""Tangents of forward mode, once the input is known; None where there are none."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the terms ask of the recorder.

    Args:
        on: The output map.
        parts: Whether some term is evaluated on a part of the rows.
        only_parts: Whether every term is.
        every_call: Whether calls behind the chosen one may count, too (manual optimization).
        replays: Whether a jet may evaluate the call again (order 2 by ``torch.func``).
    """

    on: BatchFn
    parts: bool = False
    only_parts: bool = False
    every_call: bool = False
    replays: bool = False


@dataclass(slots=True, eq=False)
class Observed:
    """A call, its input and its output as they were when it returned; gives a jet.

    Args:
        call: The call.
        recorder: Who observed it.
        x: The observed input, a leaf of its own or an intermediate of the step's graph.
        y: The matched output, before the output map.
        number: Which of the step's calls it is, from zero.
        node: The step's own node of the output in autograd's graph.
        replay_only: Whether its own forward cannot give the derivative.
        func_jet: The func engine's jet, there when the call is over.
        tangents: Those that forward mode pushed.
        comparisons: Terms that a compiled call evaluated itself, by number.
    """

    call: Call
    recorder: "Recorder"
    x: Tensor
    y: Tensor
    number: int = 0
    node: Any = None
    replay_only: bool = False
    func_jet: FuncJet | None = None
    tangents: Tensor | None = None
    comparisons: dict[int, Any] | None = None

    @property
    def size(self) -> int:
        """Number of rows that can be told apart: groups, where rows belong to groups."""
        groups = self.call.groups
        return self.x.shape[0] if groups is None else groups.count

    @property
    def outputs(self) -> int:
        """Number of rows of the output."""
        groups = self.call.groups
        return self.x.shape[0] if groups is None else groups.outputs

    def jet(self) -> Jet:
        """The jet of ``on(module)`` at the observed input; no further forward pass."""
        if self.func_jet is not None:
            return self.func_jet
        return TapeJet(mapped(self.recorder.needs.on, self.y, self.x), self.x)

    def replay(
        self, rows: Tensor | None = None, fraction: float = 1.0, push: Push | None = None,
        at: Tensor | None = None,
    ) -> "Observed":  # fmt: skip
        """Make the call once more, on all rows or a fraction, as :mod:`observe.call` says.

        Args:
            rows: Which rows; None for all.
            fraction: Which share of all they are.
            push: Who gives forward mode its tangents.
            at: Other inputs in the place of the observed ones.

        Returns:
            The new call.
        """
        recorder, call = self.recorder, self.call
        cut = None if rows is None else recorder.row_axes.cut(self, rows)
        x = self.x if at is None else at
        x = x if cut is None else x[cut.rows]
        if x.dtype.itemsize < 4 and not (recorder.is_half and recorder.is_sharded):
            x = x.float()
        # x[rows] of our own leaf would hang the second graph below the first one.
        is_inner = self.x.grad_fn is not None and at is None
        x = x if is_inner else x.detach().requires_grad_()
        seen = Observed(call if cut is None else call.cut_to(cut), recorder, x, self.y, self.number)
        if recorder.compiled is not None and not recorder.is_validating:
            whole = recorder.compiled.replay(seen, rows, fraction, cut)
            if whole is not None:
                return whole
        run = partial(call.replay, options=recorder.replay_options, cut=cut)
        if recorder.engine == "func":
            seen.tangents = None if push is None else push(seen.call, x, 0)
            seen.func_jet, _, seen.y = recorder.func_jet(run, seen.call, x, seen.tangents)
        else:
            seen.y = select_output(plain(run(x.clone())), call.output, seen.outputs)
        return seen

    def outside_of_inference(self) -> "Observed":
        """Return the same call with ordinary tensors in the place of inference tensors."""

        def ordinary(tensor: Tensor) -> Tensor:
            return tensor.clone() if tensor.is_inference() else tensor

        old, snapshot = self.call, self.call.snapshot
        assert snapshot is not None
        call = replace(
            old,
            inputs=_paths.map_tensors(old.inputs, ordinary),
            outer=None if old.outer is None else _paths.map_tensors(old.outer, ordinary),
            snapshot=replace(
                snapshot, buffers={n: ordinary(b) for n, b in snapshot.buffers.items()}
            ),
        )
        return replace(self, call=call, x=ordinary(self.x).detach(), y=ordinary(self.y))


def mapped(on: BatchFn, y: Tensor, x: Tensor) -> Tensor:
    """Apply an output map in the precision of the input: autocast leaves outputs in half."""
    if on is identity and y.dtype == x.dtype:
        return y
    wide = y if y.dtype == x.dtype else y.to(torch.promote_types(y.dtype, x.dtype))
    if not torch.is_autocast_enabled(x.device.type):
        return on(wide)
    with torch.autocast(x.device.type, enabled=False):
        return on(wide)


def plain(result: Any) -> Any:
    """Return a result whose tensors of a subclass with attributes are ordinary ones."""
    return _paths.map_tensors(result, undressed)


class Compiled(Protocol):
    """Evaluates calls together with their terms; None where that does not compile."""

    def observe(self, seen: Observed) -> tuple[Any] | None:
        """Make the step's own call; fill in output and comparisons, return its result."""
        ...

    def replay(
        self, seen: Observed, rows: Tensor | None, fraction: float, cut: Cut | None
    ) -> Observed | None:
        """Make a call once more."""
        ...


@dataclass(slots=True, eq=False)
class _Watch:
    """One candidate for the student."""

    name: str
    module: nn.Module
    calls: int = 0
    observed: list[Observed] = field(default_factory=list)
    under_way: Observed | None = None
    result: Any = None
    outer: Inputs | None = None
    entered: bool = False
    shadow: Any = None
    handles: list[Any] = field(default_factory=list)


class Recorder:
    """Records the calls that a step makes of one module: the target, the root or a child.

    Args:
        root: What is trained.
        target: Name of the observed submodule; None: the root itself or, if a step never calls
            that, the one child that it calls.
        options: What is observed.
        needs: What the terms ask.
        replay_options: How a call is made once more.
        passed_over: Modules that are no candidates: teachers inside the root.
    """

    def __init__(
        self, root: nn.Module, target: str | None, options: ObserveOptions, needs: Needs,
        replay_options: ReplayOptions, passed_over: Collection[nn.Module] = (),
    ) -> None:  # fmt: skip
        self.root, self.options, self.needs = root, options, needs
        self.replay_options = replay_options
        self.engine = "func" if options.engine == "func" else "tape"
        self.push: Push | None = None
        self.batch: Any = None  # what the step was given, if anybody said so
        self.index: Tensor | None = None  # the groups, where they are known beforehand
        self.pools = False  # whether an output had a row for each group, and not for each node
        self.is_mixed: bool | None = None  # whether some inputs had those rows, too
        self.compiled: Compiled | None = None
        self.row_axes = RowAxes(options.row_axes)
        candidates = _candidates(root, target, passed_over)
        self._watches = [_Watch(name, module) for name, module in candidates.items()]
        watched = self.watched = [watch.module for watch in self._watches]
        self.is_half = any(map(is_half, watched))
        self.is_sharded = any(map(sharded_parts, watched))
        self.snapshots = False
        self.is_closed = False
        self._active = self._busy = self.is_validating = False
        self._inserted: tuple[_Watch, Tensor] | None = None
        for module in watched:
            if isinstance(module, torch.jit.ScriptModule):
                raise ValueError(
                    "module must be an ordinary nn.Module, got one of torch.jit.script or "
                    "torch.jit.trace, whose calls cannot be observed; train what it is made of"
                )

    def is_like(self, other: "Recorder") -> bool:
        """Whether another one observes the same calls of the same module."""
        return self.root is other.root and self.options == other.options

    def install(self) -> None:
        """Put on the shadows, off until :meth:`start`."""
        for watch in self._watches:
            watch.shadow = Shadow(watch.module, "forward", partial(self._called, watch)).put_on()

    def _add_hooks(self, watch: _Watch) -> None:
        # Where others have hooks: what they change is part of the call.
        before, after = Passing(self._before, watch), Passing(self._after, watch)
        watch.handles = [
            watch.module.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
            watch.module.register_forward_hook(after),
        ]

    def remove(self) -> None:
        """Take off what :meth:`install` put on."""
        self._active = False
        for watch in self._watches:
            if watch.shadow is not None:
                watch.shadow.take_off()
            for handle in watch.handles:
                handle.remove()
            watch.shadow, watch.handles = None, []

    def start(self, *, without_gradients: bool = False) -> None:
        """Forget what was observed and begin to observe."""
        self._active, self.is_validating, self.is_closed = True, without_gradients, False
        for watch in self._watches:
            watch.calls, watch.observed, watch.under_way = 0, [], None
            watch.outer, watch.entered = None, False
            hooks: Any = watch.module._forward_hooks
            if not watch.handles and (hooks or watch.module._forward_pre_hooks):
                self._add_hooks(watch)
            elif len(hooks) > 1:  # ours has the last word
                hooks.move_to_end(watch.handles[1].id)

    def forget(self) -> None:
        """Let calls pass, and drop what was observed: no graph is kept into the next step."""
        self._active, self.batch = False, None
        for watch in self._watches:
            watch.observed, watch.under_way, watch.result, watch.outer = [], None, None, None

    def resume(self) -> None:
        """Go on to observe the step."""
        self._active = True

    def stop(self) -> None:
        """Let calls pass."""
        self._active = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let calls pass for a while."""
        before, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = before

    def called(self) -> "_Watch | None":
        """Return the candidate that the step called; None if there is none."""
        found = None
        for watch in self._watches:
            if watch.calls and not watch.name:  # the root, which comes first
                return watch
            if watch.calls and found is not None:
                several = [repr(w.name) for w in self._watches if w.calls]
                raise ValueError(
                    f"module: training_step called several submodules ({', '.join(several)}); name "
                    "the one whose input and output are meant"
                )
            found = watch if watch.calls else found
        return found

    def chosen(self) -> list[Observed]:
        """Return the observed calls that count; none where ``missing="skip"`` allows it."""
        watch, call = self.called(), self.options.call
        if watch is None:
            return self._missing()
        if call == "all":
            return watch.observed
        if call == "first":
            return watch.observed[:1]
        if not -watch.calls <= call < watch.calls:
            made = watch.calls
            raise ValueError(f"call must be in [{-made}, {made}) for {made} calls, got {call}")
        return [watch.observed[call]] if call < 0 else watch.observed[:1]

    def _missing(self) -> list[Observed]:
        if self.options.missing == "skip":
            return []
        watched = ", ".join(repr(w.name) if w.name else "the module itself" for w in self._watches)
        raise ValueError(
            "module: training_step called none of the watched modules with gradients enabled "
            f"(watched: {watched}); name the submodule that maps the input to the output, or let "
            "such steps pass with missing='skip'"
        )

    def describe(self, seen: Observed) -> str:
        """Say in a line what was observed: ``net(x: args.0 [8, 3]) -> [8, 2], call 1 of 2``."""
        watch = next(w for w in self._watches if w.module is seen.call.module)
        name = watch.name or type(watch.module).__name__
        calls = f"call {seen.number + 1} of {watch.calls}"
        return f"{name}({seen.call.describe_input(seen.x)}) -> {list(seen.y.shape)}, {calls}"

    def _called(self, watch: _Watch, *args: Any, **kwargs: Any) -> Any:
        forward, inserted = watch.shadow.inner, self._inserted
        if inserted is not None and inserted[0] is watch:
            self._inserted, watch.entered, watch.outer = None, False, None
            return self._with_point(forward, inserted[1], {"args": args, "kwargs": kwargs})
        # A call without gradients is somebody's bookkeeping, one inside of torch.func as well; a
        # nested one is part of another.
        if (
            not self._active
            or self._busy
            or not (torch.is_grad_enabled() or self.is_validating)
            or torch._C._functorch.maybe_current_level() is not None
        ):
            watch.under_way, watch.entered, watch.outer = None, False, None
            return forward(*args, **kwargs)
        number, call = watch.calls, self.options.call
        watch.calls = number + 1
        if self.is_closed:
            raise ValueError(
                f"call={call} counts back from the step's last call, but another call came behind "
                "the manual_backward that took the term; name it from the front, or use "
                "call='first' (of each manual_backward) or call='all'"
            )
        if isinstance(call, int):
            is_wanted = call < 0 or number == call
        else:
            is_wanted = number == 0 or call == "all" or self.needs.every_call
        if not is_wanted:
            watch.under_way, watch.entered, watch.outer = None, False, None
            return forward(*args, **kwargs)
        self._busy = True
        try:
            return self._observe(watch, args, kwargs)
        finally:
            self._busy = False

    def _with_point(self, forward: Callable[..., Any], point: Tensor, inputs: Inputs) -> Any:
        call_place = self._place_of_replay
        like = call_place.read(inputs) if len(call_place.paths) == 1 else point
        filled = call_place.fill(inputs, dressed(point, like))
        return forward(*filled["args"], **filled["kwargs"])

    def _observe(self, watch: _Watch, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        forward, needs, inputs = watch.shadow.inner, self.needs, {"args": args, "kwargs": kwargs}
        tensor = args[0] if args else None
        if (
            self.options.wrt is None
            and type(tensor) is Tensor
            and tensor.is_floating_point()
            and tensor.ndim
        ):
            place, bare = FIRST, tensor
        else:
            place = locate(self.options.wrt, forward, inputs)
            tensor = place.read(inputs)
            bare = undressed(tensor)
        only = needs.only_parts or self.is_validating or self._needs_replay(bare.device)
        # A clone: the step may write into its input after the call.
        x = bare.clone() if bare.requires_grad else bare.detach().clone()
        if not only and not x.requires_grad:
            x.requires_grad_()
        call = Call(watch.module, forward, inputs, place, self.inserting)
        call.alone = place is FIRST and len(args) == 1 and not kwargs
        call.outer, call.direct = watch.outer, bool(watch.handles) and not watch.entered
        watch.outer, watch.entered = None, False
        if only or needs.parts or needs.replays or self.snapshots:
            call.snapshot = Snapshot.take(watch.module, x.device)
        if call.alone and call.outer is None:
            call.inputs = {"args": (x,), "kwargs": {}}
        else:
            call.keep_inputs(x, tensor)
        seen = Observed(call, self, x, x, watch.calls - 1, replay_only=only)
        with self.replay_options.remedies:
            result = self._evaluated(seen, inputs, tensor)
        watch.observed.append(seen)
        watch.under_way, watch.result = seen, result
        return result

    def _evaluated(self, seen: Observed, inputs: Inputs, tensor: Tensor) -> Any:
        call, x = seen.call, seen.x
        if seen.replay_only:  # looked at, not differentiated
            result = call.forward(*inputs["args"], **inputs["kwargs"])
            seen.y = self._output(call, result, x)
            seen.node = seen.y.grad_fn
            return result
        if self.compiled is not None:
            found = self.compiled.observe(seen)
            if found is not None:
                return found[0]
        if self.engine == "func":
            place = seen.number if self.options.call == "all" or self.needs.every_call else 0
            seen.tangents = None if self.push is None else self.push(call, x, place)
            run = partial(_first_then_again, call, inputs, [], self.replay_options)
            seen.func_jet, result, y = self.func_jet(run, call, x, seen.tangents)
            seen.y, seen.node = y.clone(), y.grad_fn
            return result
        # A clone is passed on: a forward that writes in place must not change the leaf.
        point = x.clone() if type(tensor) is Tensor else dressed(x.clone(), tensor)
        if call.place is FIRST:
            result = call.forward(point, *inputs["args"][1:], **inputs["kwargs"])
        else:
            filled = call.place.fill(inputs, point)
            held = call.place.holders(filled)
            result = call.forward(*filled["args"], **filled["kwargs"])
            carry_back(held, filled, inputs)
        # Another clone is kept: the step may write into its output.
        y = self._output(call, result, x)
        check_differs(y, point, result)
        seen.y, seen.node = y.clone(), y.grad_fn
        return result

    def _output(self, call: Call, result: Any, x: Tensor) -> Tensor:
        if (
            type(result) is Tensor
            and self.options.output is None
            and self.options.groups is None
            and not self.pools
            and result.shape[:1] == x.shape[:1]
            and result.is_floating_point()
        ):
            return result
        result, name, rows = plain(result), self.options.groups, len(x)
        if call.groups is not None:  # made once more, or changed by a hook
            return select_output(result, call.output, call.groups.outputs)
        blocks = call.place.blocks(call.inputs) if len(call.place.paths) > 1 else ()
        if name is None and not blocks:
            call.output = locate_output(result, self.options.output, rows)
            y, call.groups = select_output(result, call.output, None), None
            if y.shape[:1] == (rows,) and not self.pools:
                return y
        index = self.index
        if index is None:
            index = locate_groups(name, call.place, call.forward, call.inputs, self.batch)
        if index is None and not blocks:
            raise no_rows(y, rows)
        count = rows if index is None else _count(index)
        call.output = locate_output(result, self.options.output, count)
        y = select_output(result, call.output, None)
        if y.ndim == 0:
            raise no_rows(y, count)
        self._group(call, index, blocks, (rows, len(y)))
        return y

    def _group(
        self, call: Call, index: Tensor | None, blocks: tuple[Block, ...], sizes: tuple[int, int]
    ) -> None:
        rows, outputs = sizes
        call.index = index
        call.groups = grouped(index, blocks, rows, outputs, pools=self.pools)
        # Remembered for batches that have, by chance, as many nodes as groups.
        if index is not None and len(index) != outputs:
            self.pools, self.is_mixed = True, bool(blocks)
        elif len(call.place.paths) > 1 and self.is_mixed is not False:
            check_told_apart(call.groups, blocks)

    def func_jet(
        self, run: Callable[[Tensor], Any], call: Call, x: Tensor, tangents: Tensor | None
    ) -> tuple[FuncJet, Any, Tensor]:
        """Return the jet of ``on(run)`` by torch.func, what ``run`` returned, and its output."""
        kept: dict[str, Any] = {}

        def function(point: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            result = run(point)
            y = self._output(call, result, x)
            check_differs(y, point, result)
            # torch.func carries tensors alone; everything else of the result is the same outside.
            kept["result"], kept["paths"] = result, _paths.tensors(result)
            return mapped(self.needs.on, y, x), (y, [tensor for _, tensor in kept["paths"]])

        jet = FuncJet(function, x, tangents=tangents, has_aux=True)
        y, tensors = jet.aux
        result, paths = kept.pop("result"), kept.pop("paths")
        for (path, _), tensor in zip(paths, tensors, strict=True):
            result = _paths.put(result, path, tensor)
        return jet, result, y

    def _needs_replay(self, device: torch.device) -> bool:
        options = self.options
        if options.batch_norm == "eval":
            return True
        if options.inner_precision == "float32":
            if torch.is_autocast_enabled(device.type):
                return torch.get_autocast_dtype(device.type) in (torch.float16, torch.bfloat16)
            return self.is_half and not self.is_sharded
        if options.inner_precision == "bf16-mixed":
            low = torch.is_autocast_enabled(device.type)
            return not (low and torch.get_autocast_dtype(device.type) == torch.bfloat16)
        return False

    @contextmanager
    def inserting(self, call: Call, point: Tensor) -> Iterator[None]:
        """Let the next forward of the called module take ``point`` in."""
        watch = next(w for w in self._watches if w.module is call.module)
        is_bare = watch.shadow is None
        if is_bare:  # a plain loop evaluates its loss behind the observed part
            self.install()
        before = self._busy, self._inserted
        self._busy, self._inserted, self._place_of_replay = True, (watch, point), call.place
        try:
            yield
        finally:
            self._busy, self._inserted = before
            if is_bare:
                self.remove()

    def _before(self, watch: _Watch, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._active and not self._busy:
            watch.entered = True
            if len(module._forward_pre_hooks) > 1:
                watch.outer = {"args": args, "kwargs": kwargs}

    def _after(self, watch: _Watch, module: nn.Module, args: Any, result: Any) -> None:
        # Sharded modules replace their output after forward; the step sees the replacement, and
        # only its graph knows how to gather the parameters again.
        del module, args
        seen, watch.under_way = watch.under_way, None
        if seen is None or self._busy or result is watch.result:
            return
        if seen.func_jet is not None or seen.comparisons is not None:
            raise ValueError(
                "a forward hook of the observed module replaces its output, which torch.func does "
                f"not see; use engine='tape', got engine={self.options.engine!r}"
            )
        watch.result = None
        y = self._output(seen.call, result, seen.x)
        seen.y, seen.node = y if seen.replay_only else y.clone(), y.grad_fn


def _count(index: Tensor) -> int:
    return int(index.max()) + 1 if len(index) else 0


def _first_then_again(
    call: Call, inputs: Inputs, evaluated: list[bool], options: ReplayOptions, point: Tensor
) -> Any:
    # The step's own evaluation comes first; what torch.func evaluates later is a replay.
    if evaluated:
        return call.replay(point, options)
    evaluated.append(True)
    filled = call.place.fill(inputs, point)
    return call.forward(*filled["args"], **filled["kwargs"])


def _candidates(
    root: nn.Module, target: str | None, passed_over: Collection[nn.Module]
) -> dict[str, nn.Module]:
    if target is not None:
        return {target: root.get_submodule(target)}
    children = {
        name: module
        for name, module in root.named_children()
        if module not in passed_over and next(module.parameters(), None) is not None
    }
    trained = {n: m for n, m in children.items() if any(p.requires_grad for p in m.parameters())}
    return {"": root, **(trained or children)}
