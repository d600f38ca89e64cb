"""The observed forward: the student's own call, seen while ``training_step`` runs.

Inside :meth:`Observer.watching` the chosen module's ``forward`` is shadowed by an instance
attribute, which catches ``self(x)``, ``self.forward(x)`` and calls of submodules alike. The chosen
input becomes a leaf that requires grad, a clone of it is passed on, and (x, y) is kept: no second
student forward, and the dropout masks of value and derivative agree.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, Jet
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from lightning_sobolev.plugin.select import Inputs, locate, select_output

Call = Literal["first", "all"] | int


@dataclass(frozen=True)
class Probe:
    """What to observe of a call and how to differentiate it.

    Args:
        wrt: Path of the input: position, name or key path; None for the first float tensor.
        output: Path of the output; None for the first float tensor.
        on: Output map.
        engine: ``"tape"`` or ``"func"``.
        tangents: For forward mode: draws the tangents once the input is known.
    """

    wrt: str | int | None
    output: str | int | None
    on: BatchFn
    engine: str
    tangents: Callable[[Tensor], Tensor | None]


@dataclass(eq=False)
class Observation:
    """One observed call: of what, with what, and its jet.

    Args:
        module: The module that was called.
        inputs: What it was called with.
        path: Where in ``inputs`` the observed input stands.
        probe: How it was observed.
        x: The point of evaluation.
        y: The matched output, before the output map.
        tangents: The directions that were pushed through the forward itself, if any.
        pushed: The jet of the func engine, which exists as soon as the call is over.
    """

    module: nn.Module
    inputs: Inputs
    path: _paths.Path
    probe: Probe
    x: Tensor
    y: Tensor
    tangents: Tensor | None = None
    pushed: FuncJet | None = None

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.x.shape[0]

    def jet(self) -> Jet:
        """The jet of ``on(module)`` at the observed input; no further forward pass."""
        return self.pushed if self.pushed is not None else TapeJet(self.probe.on(self.y), self.x)

    def again(self, rows: Tensor | None) -> "Observation":
        """Evaluate the module once more.

        Args:
            rows: Row numbers, or None for all rows.

        Returns:
            The observation of this second call.
        """
        x, inputs = self.x, self.inputs
        if rows is not None:
            x, inputs = x[rows], _paths.take_rows(inputs, rows, self.size)
        # x[rows] of our own leaf would hang the second graph below the first one.
        point = x if self._is_intermediate else x.detach().requires_grad_()
        seen, _ = observed_call(self.module, self.module, inputs, self.path, point, self.probe)
        return seen

    @property
    def _is_intermediate(self) -> bool:
        return self.x.grad_fn is not None


def observed_call(
    module: nn.Module,
    forward: Callable[..., Any],
    inputs: Inputs,
    path: _paths.Path,
    x: Tensor,
    probe: Probe,
) -> tuple[Observation, Any]:
    """Call ``forward`` with ``x`` at ``path`` and keep what its jet needs.

    Args:
        module: The module whose call this is.
        forward: What to call.
        inputs: Arguments of the call.
        path: Where in ``inputs`` the observed input stands.
        x: The point of evaluation: a leaf that requires grad, or an intermediate.
        probe: What to observe.

    Returns:
        The observation, and what the call returned.
    """

    def run(point: Tensor) -> Any:
        filled = _paths.put(inputs, path, point)
        return forward(*filled["args"], **filled["kwargs"])

    if probe.engine == "tape":
        # A clone is passed on: a forward that writes in place must not change the leaf.
        result = run(x.clone())
        y = select_output(result, probe.output)
        return Observation(module, inputs, path, probe, x, y), result

    def run_func(point: Tensor) -> tuple[Tensor, tuple[Any, Tensor]]:
        result = run(point)
        y = select_output(result, probe.output)
        return probe.on(y), (result, y)

    tangents = probe.tangents(x)
    jet = FuncJet(run_func, x, tangents=tangents, has_aux=True)
    result, y = jet.aux
    return Observation(module, inputs, path, probe, x, y, tangents, jet), result


class Observer:
    """Watches the calls that one training step makes.

    Args:
        root: The LightningModule.
        target: Name of the submodule to watch; None for the module itself or, if the step never
            calls that, the one child with parameters that it calls.
        probe: What to observe.
        call: Which call counts when there are several.
    """

    def __init__(self, root: nn.Module, target: str | None, probe: Probe, call: Call) -> None:
        self._candidates = _candidates(root, target)
        self._probe = probe
        self._call = call
        self._seen: dict[str, list[Observation]] = {name: [] for name in self._candidates}
        self._calls = dict.fromkeys(self._candidates, 0)
        self._busy = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Shadow the candidates' ``forward`` and restore them whatever happens.

        Yields:
            Nothing.
        """
        earlier = {name: vars(m).get("forward") for name, m in self._candidates.items()}
        handles = []
        try:
            for name, module in self._candidates.items():
                # vars() and not setattr: a compiled module passes attributes on to the original.
                vars(module)["forward"] = self._shadow(name, module, module.forward)
                handles.append(module.register_forward_hook(self._after(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, module in self._candidates.items():
                vars(module).pop("forward", None)
                if earlier[name] is not None:
                    vars(module)["forward"] = earlier[name]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let calls pass unobserved: those of the derivative's own forward.

        Yields:
            Nothing.
        """
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @property
    def captured(self) -> bool:
        """Whether any call has been observed so far."""
        return any(self._seen.values())

    def chosen(self) -> list[Observation]:
        """The observations that count.

        Returns:
            One observation, or all of them for ``call="all"``.

        Raises:
            ValueError: If nothing was captured, two children compete, or ``call`` is out of range.
        """
        called = {name: seen for name, seen in self._seen.items() if seen}
        name = self._resolve(called)
        seen = called[name]
        if self._call == "all":
            return seen
        if self._call == "first":
            return seen[:1]
        index = int(self._call)
        made = self._calls[name]
        if not -made <= index < made:
            raise ValueError(f"call must be in [{-made}, {made}) for {made} calls, got {index}")
        return [seen[index] if index < 0 else seen[0]]

    def _resolve(self, called: dict[str, list[Observation]]) -> str:
        if "" in called or len(called) == 1:
            return "" if "" in called else next(iter(called))
        watched = ", ".join(
            repr(name) if name else "the module itself" for name in self._candidates
        )
        if not called:
            raise ValueError(
                "module: training_step called none of the watched modules with gradients enabled "
                f"(watched: {watched}); name the submodule that maps the input to the output"
            )
        raise ValueError(
            f"module: training_step called several submodules ({', '.join(map(repr, called))}); "
            "name the one whose input and output are meant"
        )

    def _wanted(self, number: int) -> bool:
        if self._call == "all" or (isinstance(self._call, int) and self._call < 0):
            return True
        return number == (0 if self._call == "first" else self._call)

    def _shadow(
        self, name: str, module: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        def observed(*args: Any, **kwargs: Any) -> Any:
            # A call without gradients is somebody's bookkeeping; a nested one is part of an outer.
            if self._busy or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            number = self._calls[name]
            self._calls[name] += 1
            if not self._wanted(number):
                return forward(*args, **kwargs)
            inputs: Inputs = {"args": args, "kwargs": kwargs}
            path = locate(self._probe.wrt, forward, inputs)
            tensor = _paths.get(inputs, path, "wrt")
            point = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()
            with self.paused():
                seen, result = observed_call(module, forward, inputs, path, point, self._probe)
            self._seen[name].append(seen)
            return result

        return observed

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, args: Any, result: Any) -> None:
            # Sharded modules replace their output after forward; the step sees the replacement,
            # and only its graph knows how to gather the parameters again.
            del module, args
            if not self._busy and self._seen[name] and self._probe.engine == "tape":
                last = self._seen[name][-1]
                if self._wanted(self._calls[name] - 1):
                    last.y = select_output(result, self._probe.output)

        return after


def _candidates(root: nn.Module, target: str | None) -> dict[str, nn.Module]:
    if target is not None:
        return {target: root.get_submodule(target)}
    trained = {n: m for n, m in root.named_children() if next(m.parameters(), None) is not None}
    return {"": root, **trained}
