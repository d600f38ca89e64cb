"""Find the observed input among a call's arguments and the matched tensor in its result."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sobolev import _paths
from lightning_sobolev._groups import Block, stacked, unstacked
from lightning_sobolev.observe.options import Wrt

Inputs = dict[str, Any]
Held = dict[_paths.Path, dict[_paths.Key, Any]]
"""``{"args": tuple, "kwargs": dict}`` of one call."""

Forward = Callable[..., Any]
"""Calls the observed module."""


@dataclass(frozen=True)
class Place:
    """Where the observed input stands in a call; several are one, their flat rows joined.

    Inputs with different numbers of rows (positions of nodes, strains of graphs) stand below one
    another instead.
    """

    paths: tuple[_paths.Path, ...]

    def read(self, inputs: Inputs) -> Tensor:
        """Return the observed input."""
        tensors: list[Tensor] = [_paths.get(inputs, path, "wrt") for path in self.paths]
        if len(tensors) == 1:
            return tensors[0]
        if any(tensor.ndim == 0 for tensor in tensors):
            got = "; ".join(map(_paths.describe, tensors))
            raise ValueError(f"wrt: several inputs must have the same number of rows, got {got}")
        wide = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        if self.blocks(inputs):
            return stacked([tensor.to(wide) for tensor in tensors])
        flat = [t.reshape(len(t), t.shape[1:].numel()).to(wide) for t in tensors]
        return torch.cat(flat, 1)

    def blocks(self, inputs: Inputs) -> tuple[Block, ...]:
        """Return what stands below one another; nothing where all have the same rows."""
        shapes = [_paths.get(inputs, path, "wrt").shape for path in self.paths]
        if len({shape[:1] for shape in shapes}) < 2:
            return ()
        return tuple(Block(shape[0], tuple(shape[1:])) for shape in shapes)

    def fill(self, inputs: Inputs, point: Tensor) -> Inputs:
        """Return a copy of ``inputs`` that holds ``point``, each part in its own shape and type."""
        if len(self.paths) == 1:
            filled: Inputs = _paths.put(inputs, self.paths[0], point)
            return filled
        old = [_paths.get(inputs, path, "wrt") for path in self.paths]
        if len(point) == sum(map(len, old)):  # graphs of one node have as many nodes as graphs
            parts = unstacked(point, tuple(Block(len(t), tuple(t.shape[1:])) for t in old))
        else:
            wide = torch.split(point, [tensor.shape[1:].numel() for tensor in old], 1)
            shapes = [tensor.shape[1:] for tensor in old]
            parts = [part.reshape(len(part), *s) for part, s in zip(wide, shapes, strict=True)]
        for path, tensor, part in zip(self.paths, old, parts, strict=True):
            inputs = _paths.put(inputs, path, part.to(tensor.dtype))
        return inputs

    def holders(self, filled: Inputs) -> Held:
        """Return what the structures hold that :meth:`fill` has copied."""
        ways = {path[:depth] for path in self.paths for depth in range(2, len(path))}
        return {way: dict(_paths.children(_paths.get(filled, way, "wrt"))) for way in ways}


def carry_back(held: Held, filled: Inputs, inputs: Inputs) -> None:
    """Write into the caller's structures what the module has written into their copies."""
    for way, before in held.items():
        owner = _paths.get(inputs, way, "wrt")
        for key, value in _paths.children(_paths.get(filled, way, "wrt")):
            if isinstance(value, Tensor) and before.get(key) is not value:
                _paths.write(owner, key, value)


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
    """Return where the inputs stand: by position, parameter's name or key of the first argument.

    Raises:
        ValueError: If there is no such tensor, or none is named of several without an order.
    """
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
    _check_first(f"wrt={wrt!r}: the observed input", chosen, inner)
    return (*path, *inner)


def _check_first(what: str, tree: Any, path: _paths.Path, rows: int | None = None) -> None:
    if rivals := _paths.rivals(tree, path, rows):
        names = sorted(".".join(map(str, one)) for one in rivals)
        raise ValueError(
            f"{what} must be named where an object holds several floating-point tensors in no "
            f"order, got {names}"
        )


def locate_groups(
    name: str | int | None, place: Place, forward: Forward, inputs: Inputs, batch: Any
) -> Tensor | None:
    """Return the group of each input row: as named, in the call or the batch, or beside the input.

    Raises:
        ValueError: If what is named is no vector of integers, one for each row.
    """
    tensors: list[Tensor] = [_paths.get(inputs, path, "wrt") for path in place.paths]
    rows = [len(tensor) for tensor in tensors]
    index = _named_groups(name, place, forward, inputs, batch)
    if index is None and name is not None:
        return torch.zeros(max(rows), dtype=torch.long, device=tensors[0].device)  # one graph
    is_index = isinstance(index, Tensor) and index.ndim == 1 and len(index) in rows
    is_index = is_index and not index.is_floating_point() and index.dtype != torch.bool
    if name is None and not is_index:
        return None
    if not is_index:
        expected = " or ".join(str(one) for one in sorted(set(rows)))
        raise ValueError(
            f"groups={name!r} must be a vector of integers, one for each of {expected} input rows, "
            f"got {_paths.describe(index)}"
        )
    found: Tensor = index.long()
    return found


def _named_groups(
    name: str | int | None, place: Place, forward: Forward, inputs: Inputs, batch: Any
) -> Any:
    if name is None:
        path = _beside(place, forward, inputs)
        return None if path is None else _paths.get(inputs, path, "groups")
    try:
        path = resolve(name, forward, inputs, f"groups={name!r}")
        found = _paths.get(inputs, path, f"groups={name!r}")
        return _index_of(found)
    except ValueError as of_call:
        if batch is None:
            raise ValueError(
                f"groups={name!r} must be an argument of the observed call, or a key of the batch, "
                f"which is not known here (observe(..., batch=batch)), got no argument ({of_call})"
            ) from of_call
        try:
            return _paths.get(batch, _paths.parse(name), f"groups={name!r}")
        except ValueError as of_batch:
            raise ValueError(
                f"groups={name!r} must be an argument of the observed call or a key of the batch, "
                f"got neither ({of_call}; {of_batch})"
            ) from of_batch


def _index_of(found: Any) -> Any:
    # An argument of that name may be the graphs, and the index their attribute; None of one graph.
    try:
        return found if isinstance(found, Tensor) else _paths.get(found, (_BATCH,), "groups")
    except ValueError:
        return found


def _beside(place: Place, forward: Forward, inputs: Inputs) -> _paths.Path | None:
    for path in place.paths:
        above = path[:-1]
        owner = _paths.get(inputs, above, "groups")
        if len(above) > 1 and _paths.has(owner, _BATCH):
            return (*above, _BATCH)
    try:
        return resolve(_BATCH, forward, inputs)
    except ValueError:
        return None


_BATCH = "batch"
"""torch-geometric's name of the index."""


def locate_output(result: Any, output: str | int | None, rows: int) -> _paths.Path:
    """Return where the matched tensor stands: as named, or the first float with as many rows.

    Raises:
        ValueError: If there is no first one.
    """
    if output is not None:
        return _paths.parse(output)
    found = _paths.first_float(result, rows)
    if found is None:
        return _paths.first_float(result) or ()
    _check_first("output", result, found, rows)
    return found


def select_output(result: Any, path: _paths.Path, rows: int | None) -> Tensor:
    """Pick the matched tensor from what the observed module returned; ``rows`` None takes any."""
    name = f"output={'.'.join(map(str, path)) or None!r}"
    chosen = _paths.get(result, path, name)
    if not isinstance(chosen, Tensor) or not chosen.is_floating_point():
        got = _paths.describe(result if chosen is None else chosen)
        raise ValueError(
            f"{name}: the observed module must return a real floating-point tensor there to have a "
            f"derivative, got {got}"
        )
    if rows is not None and chosen.shape[:1] != (rows,):
        raise no_rows(chosen, rows)
    return chosen


def check_differs(chosen: Tensor, point: Tensor, result: Any) -> None:
    """Refuse an output that is the observed input itself, returned beside what was computed.

    Raises:
        ValueError: If it is that, in a structure.
    """
    if chosen is point and chosen is not result:
        raise ValueError(
            "output must be named where the observed module returns its input beside its output, "
            f"got {_paths.describe(result)}"
        )


def no_rows(chosen: Tensor, rows: int) -> ValueError:
    """Say that an output has not the rows it must have."""
    return ValueError(
        f"output: the observed module must give one row for each of its {rows} input rows, got "
        f"{_paths.describe(chosen)}; name another output= or module=, or, for graphs in one flat "
        "table, the index of the graph of each node with groups="
    )


def resolve(
    wrt: str | int, forward: Forward, inputs: Inputs, name: str | None = None
) -> _paths.Path:
    """Return the path of an argument that is named by position, parameter or key.

    ``name`` stands in messages in the place of ``wrt``.

    Raises:
        ValueError: If the call has no such argument.
    """
    name = f"wrt={wrt!r}" if name is None else name
    head, *rest = _paths.parse(wrt)
    if isinstance(head, int):
        return ("args", head, *rest)
    if head in inputs["kwargs"]:
        return ("kwargs", head, *rest)
    names = _names(forward)
    if head in names and names.index(head) < len(inputs["args"]):
        return ("args", names.index(head), *rest)
    if inputs["args"] and not isinstance(inputs["args"][0], Tensor) and head not in names:
        return ("args", 0, head, *rest)
    if head in names:
        raise ValueError(
            f"{name}: the argument must be given in the call, got one that was not given"
        )
    raise ValueError(f"{name}: the observed module has no such argument, got {names}")


def _names(forward: Forward) -> list[str]:
    # A wrapper (DDP, Fabric) hands on whatever it is given to what it wraps.
    parameters = inspect.signature(forward).parameters
    wrapped = getattr(getattr(forward, "__self__", None), "module", None)
    kinds = {parameter.kind for parameter in parameters.values()}
    if kinds <= _PASSED_ON and isinstance(wrapped, nn.Module):
        return _names(wrapped.forward)
    return list(parameters)


_PASSED_ON = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
