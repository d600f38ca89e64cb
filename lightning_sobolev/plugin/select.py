"""Find the observed input among a call's arguments and the matched tensor in its result."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sobolev import _paths

Inputs = dict[str, Any]
"""``{"args": tuple, "kwargs": dict}`` of one call."""

Forward = Callable[..., Any]
"""Calls the observed module."""

Wrt = str | int | Sequence[str | int] | None
"""Which input is differentiated; of several, one or more."""


@dataclass(frozen=True)
class Place:
    """Where the observed input stands in a call; several are one, their flat rows joined."""

    paths: tuple[_paths.Path, ...]

    def read(self, inputs: Inputs) -> Tensor:
        """Return the observed input."""
        tensors: list[Tensor] = [_paths.get(inputs, path, "wrt") for path in self.paths]
        if len(tensors) == 1:
            return tensors[0]
        rows = {tuple(tensor.shape[:1]) for tensor in tensors}
        if len(rows) > 1 or () in rows:
            got = "; ".join(map(_paths.describe, tensors))
            raise ValueError(f"wrt: several inputs must have the same number of rows, got {got}")
        wide = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        return torch.cat([tensor.reshape(len(tensor), -1).to(wide) for tensor in tensors], 1)

    def fill(self, inputs: Inputs, point: Tensor) -> Inputs:
        """Return a copy of ``inputs`` that holds ``point``, each part in its own shape and type."""
        if len(self.paths) == 1:
            filled: Inputs = _paths.put(inputs, self.paths[0], point)
            return filled
        old = [_paths.get(inputs, path, "wrt") for path in self.paths]
        parts = torch.split(point, [tensor.shape[1:].numel() for tensor in old], 1)
        for path, tensor, part in zip(self.paths, old, parts, strict=True):
            inputs = _paths.put(inputs, path, part.reshape(tensor.shape).to(tensor.dtype))
        return inputs


def parse_wrt(wrt: Any) -> str | int | tuple[str | int, ...] | None:
    """Check the form of ``wrt``; a list of one is that one."""
    if wrt is None:
        return None
    several: tuple[str | int, ...] = (wrt,) if isinstance(wrt, str | int) else tuple(wrt)
    if not several or len({_paths.parse(one) for one in several}) < len(several):
        raise ValueError(f"wrt must name one or more inputs, each once, got {wrt!r}")
    return several[0] if len(several) == 1 else several


def locate(wrt: Wrt, forward: Forward, inputs: Inputs) -> Place:
    """Return where the inputs stand: by position, parameter's name or key of the first argument."""
    several = (wrt,) if wrt is None or isinstance(wrt, str | int) else wrt
    return Place(tuple(_locate_one(one, forward, inputs) for one in several))


def _locate_one(wrt: str | int | None, forward: Forward, inputs: Inputs) -> _paths.Path:
    path = () if wrt is None else _resolve(wrt, forward, inputs)
    chosen = _paths.get(inputs, path, f"wrt={wrt!r}")
    inner = _paths.first_float(chosen)
    if inner is None:
        got = "; ".join(_paths.describe(arg) for arg in inputs["args"]) or _paths.describe(inputs)
        raise ValueError(
            f"wrt={wrt!r}: the observed module must get a floating-point tensor to differentiate "
            f"with respect to, got {got if wrt is None else _paths.describe(chosen)}; for integer "
            "inputs name the submodule behind the embedding with module="
        )
    found = (*path, *inner)
    if (tensor := _paths.get(inputs, found, "wrt")).ndim == 0:
        raise ValueError(
            f"wrt={wrt!r}: the observed input must have rows, got {_paths.describe(tensor)}; name "
            "another argument with wrt="
        )
    return found


def select_output(result: Any, output: str | int | None) -> Tensor:
    """Pick the matched tensor from what the observed module returned."""
    path = _paths.first_float(result) if output is None else _paths.parse(output)
    chosen = None if path is None else _paths.get(result, path, f"output={output!r}")
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        got = _paths.describe(result if chosen is None else chosen)
        raise ValueError(
            f"output={output!r}: the observed module must return a real floating-point tensor "
            f"there to have a derivative, got {got}"
        )
    return chosen


def _resolve(wrt: str | int, forward: Forward, inputs: Inputs) -> _paths.Path:
    head, *rest = _paths.parse(wrt)
    if isinstance(head, int):
        return ("args", head, *rest)
    if head in inputs["kwargs"]:
        return ("kwargs", head, *rest)
    names = list(inspect.signature(forward).parameters)
    if head in names and names.index(head) < len(inputs["args"]):
        return ("args", names.index(head), *rest)
    if inputs["args"] and not isinstance(inputs["args"][0], Tensor):
        return ("args", 0, head, *rest)
    raise ValueError(f"wrt={wrt!r}: the observed module has no such argument, got {names}")
