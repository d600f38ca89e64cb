"""The observed forward: the student's own call, seen while ``training_step`` runs.

A shadowed ``forward`` catches ``self(x)``, ``self.forward(x)`` and calls of submodules alike. The
chosen input becomes a leaf that requires grad, and (x, y) is kept: no second student forward, and
the dropout masks of value and derivative agree.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from lightning_sobolev.plugin.observation import Observation, Probe, observed_call
from lightning_sobolev.plugin.select import Forward, Inputs, locate, select_output
from lightning_sobolev.plugin.shadow import Passing, Shadow

Call = Literal["first", "all"] | int


class Observer:
    """Watches the calls that one training step makes of one module: the target, root or a child."""

    def __init__(self, root: nn.Module, target: str | None, probe: Probe, call: Call) -> None:
        self._candidates, self._probe, self._call = _candidates(root, target), probe, call
        self._seen: dict[str, list[Observation]] = {name: [] for name in self._candidates}
        self._calls = dict.fromkeys(self._candidates, 0)
        self._under_way: dict[str, Observation | None] = dict.fromkeys(self._candidates)
        self._busy = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Shadow the candidates' ``forward`` and restore them whatever happens."""
        earlier = {name: vars(m).get("forward") for name, m in self._candidates.items()}
        handles = []
        try:
            for name, module in self._candidates.items():
                # vars() and not setattr: a compiled module passes attributes on to the original.
                observed = self._observed(name, module, module.forward)
                vars(module)["forward"] = Shadow(module, "forward", observed)
                handles.append(module.register_forward_hook(Passing(self._after(name))))
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
        """Let calls pass unobserved: those of the derivative's own forward."""
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
        """The observations that count."""
        name = self._resolve([name for name, count in self._calls.items() if count])
        seen, made = self._seen[name], self._calls[name]
        if self._call == "all":
            return seen
        if self._call == "first":
            return seen[:1]
        index = int(self._call)
        if not -made <= index < made:
            raise ValueError(f"call must be in [{-made}, {made}) for {made} calls, got {index}")
        return [seen[index] if index < 0 else seen[0]]

    def _resolve(self, called: list[str]) -> str:
        if "" in called or len(called) == 1:
            return "" if "" in called else called[0]
        watched = ", ".join(repr(n) if n else "the module itself" for n in self._candidates)
        if not called:
            raise ValueError(
                "module: training_step called none of the watched modules with gradients enabled "
                f"(watched: {watched}); name the submodule that maps the input to the output"
            )
        raise ValueError(
            f"module: training_step called several submodules ({', '.join(map(repr, called))}); "
            "name the one whose input and output are meant"
        )

    def _counted(self, name: str) -> bool:
        self._under_way[name] = None
        if not torch.is_grad_enabled():
            return False
        number = self._calls[name]
        self._calls[name] += 1
        if isinstance(self._call, int):
            return self._call < 0 or number == self._call
        return self._call == "all" or number == 0

    def _observed(self, name: str, module: nn.Module, forward: Forward) -> Forward:
        def observed(*args: Any, **kwargs: Any) -> Any:
            # A call without gradients is somebody's bookkeeping; a nested one is part of an outer.
            if self._busy or not self._counted(name):
                return forward(*args, **kwargs)
            inputs: Inputs = {"args": args, "kwargs": kwargs}
            place = locate(self._probe.wrt, forward, inputs)
            tensor = place.read(inputs)
            point = tensor.clone() if tensor.requires_grad else tensor.detach().requires_grad_()
            with self.paused():
                seen, result = observed_call(module, forward, inputs, place, point, self._probe)
            self._seen[name].append(seen)
            self._under_way[name] = seen
            return result

        return observed

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(_module: nn.Module, _args: Any, result: Any) -> None:
            # Sharded modules replace their output after forward; the step sees the replacement,
            # and only its graph knows how to gather the parameters again.
            seen = self._under_way[name]
            if not self._busy and seen is not None and seen.pushed is None:
                seen.y = select_output(result, self._probe.output)

        return after


def _candidates(root: nn.Module, target: str | None) -> dict[str, nn.Module]:
    if target is not None:
        return {target: root.get_submodule(target)}
    trained = {n: m for n, m in root.named_children() if next(m.parameters(), None) is not None}
    return {"": root, **trained}
