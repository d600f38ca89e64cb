"""Key paths into nested batches, inputs and outputs: ``"inputs.pos"``, ``"1"``, ``0``."""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

Key = str | int
Path = tuple[Key, ...]


def parse(path: str | int) -> Path:
    """Split a dotted key path; whole numbers become indices."""
    if isinstance(path, int):
        return (path,)
    parts = path.split(".")
    if not all(parts):
        raise ValueError(f"a key path must look like 'a.b.0', got {path!r}")
    return tuple(int(part) if re.fullmatch("-?[0-9]+", part) else part for part in parts)


def get(tree: Any, path: Path, name: str) -> Any:
    """Follow ``path`` into ``tree``."""
    here = tree
    for depth, key in enumerate(path):
        try:
            here = _child(here, key)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            walked = ".".join(map(str, path[: depth + 1]))
            raise ValueError(f"{name}: no {walked!r} here; got {describe(here)}") from error
    return here


def put(tree: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``tree`` in which ``path`` holds ``value``; ``tree`` itself is unchanged."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if _is_record(tree):
        return dataclasses.replace(tree, **{str(key): put(getattr(tree, str(key)), rest, value)})
    if isinstance(tree, Mapping):
        # A copy keeps what a constructor may not: the default factory, a subclass's own state.
        # Except that of a plain dict, which a compiler does not follow.
        plain = type(tree) is dict or not isinstance(tree, MutableMapping)
        changed: Any = dict(tree) if plain else copy.copy(tree)
        changed[key] = put(tree[key], rest, value)
        return changed
    items = list(tree)
    items[int(key)] = put(items[int(key)], rest, value)
    return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)


def first_float(tree: Any) -> Path | None:
    """Return the path of the first floating-point tensor, depth first, or None."""
    if isinstance(tree, Tensor):
        return () if tree.is_floating_point() else None
    for key, child in _children(tree):
        found = first_float(child)
        if found is not None:
            return (key, *found)
    return None


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor in ``tree``; parts it leaves alone are not copied."""
    if isinstance(tree, Tensor):
        return function(tree)
    changed = tree
    for key, child in _children(tree):
        mapped = map_tensors(child, function)
        if mapped is not child:
            changed = put(changed, (key,), mapped)
    return changed


def take_rows(tree: Any, rows: Tensor, size: int) -> Any:
    """Index with ``rows`` every tensor in ``tree`` whose first axis has length ``size``."""

    def take(tensor: Tensor) -> Tensor:
        is_batched = tensor.ndim > 0 and tensor.shape[0] == size
        return tensor[rows.to(tensor.device)] if is_batched else tensor

    return map_tensors(tree, take)


def describe(tree: Any) -> str:
    """Say in a few words what ``tree`` is, for error messages."""
    if isinstance(tree, Tensor):
        return f"a tensor {list(tree.shape)} of {tree.dtype}"
    keys = [str(key) for key, _ in _children(tree)]
    return f"a {type(tree).__name__}" + (f" with keys {keys}" if keys else "")


def _child(tree: Any, key: Key) -> Any:
    if isinstance(tree, Tensor | str):
        raise TypeError("has no keys; an index into it would take a row for an argument")
    return getattr(tree, str(key)) if _is_record(tree) else tree[key]


def _is_record(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _children(tree: Any) -> list[tuple[Key, Any]]:
    if _is_record(tree):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes | torch.Size):
        return list(enumerate(tree))
    return []
