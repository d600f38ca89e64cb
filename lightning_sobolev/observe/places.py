"""Find the observed input among a call's arguments and the matched tensor in its result."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev.observe.options import Wrt

Inputs = dict[str, Any]
"""``{"args": tuple, "kwargs": dict}`` of one call."""

Forward = Callable[..., Any]
"""Calls the observed module."""


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
            inputs = _paths.put(
                inputs, path, part.reshape(len(part), *tensor.shape[1:]).to(tensor.dtype)
            )
        return inputs


FIRST = Place((("args", 0),))


def undressed(tensor: Tensor) -> Tensor:
    """Return a tensor of a subclass with attributes of its own as an ordinary one."""
    return tensor.as_subclass(Tensor) if is_dressed(tensor) else tensor


def dressed(point: Tensor, like: Tensor) -> Tensor:
    """Return ``point`` as a tensor of a subclass, with the attributes of ``like``."""
    # They are lost by detach() and clone(), and some subclasses cannot do without.
    if not is_dressed(like):
        return point
    found = point.as_subclass(type(like))
    vars(found).update(vars(like))
    return found


def is_dressed(tensor: Tensor) -> bool:
    """Whether a tensor is of a subclass that torch's own functions know nothing of."""
    kind = type(tensor)
    ordinary = kind in (Tensor, nn.Parameter) or hasattr(tensor, "__tensor_flatten__")
    return not ordinary and kind.__torch_dispatch__ is Tensor.__torch_dispatch__


def locate(wrt: Wrt, forward: Forward, inputs: Inputs) -> Place:
    """Return where the inputs stand: by position, parameter's name or key of the first argument."""
    several = (wrt,) if wrt is None or isinstance(wrt, str | int) else wrt
    return Place(tuple(_locate_one(one, forward, inputs) for one in several))


def _locate_one(wrt: str | int | None, forward: Forward, inputs: Inputs) -> _paths.Path:
    path = () if wrt is None else resolve(wrt, forward, inputs)
    chosen = _paths.get(inputs, path, f"wrt={wrt!r}")
    if isinstance(chosen, Tensor) and chosen.is_floating_point() and chosen.ndim == 0:
        raise ValueError(
            f"wrt={wrt!r}: the observed input must have rows, got {_paths.describe(chosen)}; name "
            "another argument with wrt="
        )
    inner = _paths.first_float(chosen)
    if inner is None:
        got = "; ".join(_paths.describe(arg) for arg in inputs["args"]) or _paths.describe(inputs)
        raise ValueError(
            f"wrt={wrt!r}: the observed module must get a floating-point tensor to differentiate "
            f"with respect to, got {got if wrt is None else _paths.describe(chosen)}; for integer "
            "inputs name the submodule behind the embedding with module="
        )
    return (*path, *inner)


def locate_output(result: Any, output: str | int | None, rows: int) -> _paths.Path:
    """Return where the matched tensor stands: as named, or the first float with as many rows."""
    if output is not None:
        return _paths.parse(output)
    found = _paths.first_float(result, rows)
    return found if found is not None else _paths.first_float(result) or ()


def select_output(result: Any, path: _paths.Path, x: Tensor) -> Tensor:
    """Pick the matched tensor from what the observed module returned; one row for each of ``x``."""
    name = f"output={'.'.join(map(str, path)) or None!r}"
    chosen = _paths.get(result, path, name)
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        got = _paths.describe(result if chosen is None else chosen)
        raise ValueError(
            f"{name}: the observed module must return a real floating-point tensor there to have a "
            f"derivative, got {got}"
        )
    if chosen.shape[:1] != x.shape[:1]:
        raise ValueError(
            f"output: the observed module must give one row for each of its {x.shape[0]} input "
            f"rows, got {_paths.describe(chosen)}; name another output= or module="
        )
    return chosen


def resolve(wrt: str | int, forward: Forward, inputs: Inputs) -> _paths.Path:
    """Return the path of an argument that is named by position, parameter or key."""
    head, *rest = _paths.parse(wrt)
    if isinstance(head, int):
        return ("args", head, *rest)
    if head in inputs["kwargs"]:
        return ("kwargs", head, *rest)
    names = list(inspect.signature(forward).parameters)
    if head in names and names.index(head) < len(inputs["args"]):
        return ("args", names.index(head), *rest)
    if inputs["args"] and not isinstance(inputs["args"][0], Tensor) and head not in names:
        return ("args", 0, head, *rest)
    if head in names:
        raise ValueError(
            f"wrt={wrt!r}: the argument must be given in the call, got one that was not given"
        )
    raise ValueError(f"wrt={wrt!r}: the observed module has no such argument, got {names}")
