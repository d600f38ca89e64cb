"""Key paths into nested batches, inputs and outputs: ``"inputs.pos"``, ``"1"``, ``0``.

A name is a key of a mapping and an attribute of everything else; a number is a place in a sequence.
"""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Key = str | int
Path = tuple[Key, ...]


def parse(path: str | int, name: str = "a key path") -> Path:
    """Split a dotted key path, which messages call ``name``; whole numbers become indices."""
    if isinstance(path, int) and not isinstance(path, bool):
        return (path,)
    parts = path.split(".") if isinstance(path, str) else [""]
    if not all(parts):
        raise ValueError(f"{name} must look like 'a.b.0', got {path!r}")
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


def has(tree: Any, key: Key) -> bool:
    """Whether there is something under a key."""
    try:
        return _child(tree, key) is not None
    except (KeyError, IndexError, TypeError, AttributeError):
        return False


def put(tree: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``tree`` in which ``path`` holds ``value``; ``tree`` itself is unchanged."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    child = put(_child(tree, key), rest, value)
    if isinstance(tree, Mapping):
        # A copy keeps what a constructor may not: the default factory, a subclass's own state.
        # Except that of a plain dict, which a compiler does not follow.
        plain = type(tree) is dict or not isinstance(tree, MutableMapping)
        changed: Any = dict(tree) if plain else copy.copy(tree)
        changed[key] = child
        return changed
    if _is_named(tree):
        return tree._replace(**{tree._fields[key] if isinstance(key, int) else key: child})
    if isinstance(key, int):
        items = list(tree)
        items[key] = child
        return type(tree)(items)
    changed = copy.copy(tree)
    is_frozen = _is_record(tree) and tree.__dataclass_params__.frozen
    (object.__setattr__ if is_frozen else setattr)(changed, key, child)
    return changed


def write(tree: Any, key: Key, value: Any) -> None:
    """Let ``tree`` itself hold ``value``: the item of a mapping, the attribute of an object."""
    if isinstance(tree, MutableMapping) or isinstance(key, int):
        tree[key] = value
    else:
        setattr(tree, key, value)


def tensors(tree: Any) -> list[tuple[Path, Tensor]]:
    """Return all tensors in ``tree`` with their paths, depth first."""
    return _tensors(tree, (), ())


def first_float(tree: Any, rows: int | None = None) -> Path | None:
    """Return the path of the first floating-point tensor with axes, depth first, or None.

    With ``rows`` it is the first whose first axis has that length.
    """
    for path, tensor in tensors(tree):
        if tensor.is_floating_point() and tensor.ndim and rows in (None, tensor.shape[0]):
            return path
    return None


def rivals(tree: Any, path: Path, rows: int | None = None) -> list[Path]:
    """Return what :func:`first_float` might as well have found: ``path`` is in a set of names.

    Objects that list their names in no order (graphs of torch_geometric) have no first tensor. The
    paths are those inside of that object; there are none where the order means something.
    """
    for depth in range(len(path)):
        owner = get(tree, path[:depth], "path")
        if _listed(owner) is None:
            continue
        found = [
            inner
            for inner, tensor in tensors(owner)
            if tensor.is_floating_point() and tensor.ndim and rows in (None, tensor.shape[0])
        ]
        if len(found) > 1:
            return found
    return []


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor in ``tree``; parts it leaves alone are not copied."""
    for path, tensor in tensors(tree):
        mapped = function(tensor)
        if mapped is not tensor:
            tree = put(tree, path, mapped)
    return tree


def children(tree: Any) -> list[tuple[Key, Any]]:
    """Return what ``tree`` holds, with the keys that lead there; nothing of a tensor."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if _is_record(tree):
        names = [field.name for field in dataclasses.fields(tree)]
        return [(name, getattr(tree, name)) for name in names if hasattr(tree, name)]
    if isinstance(tree, Sequence):
        is_flat = isinstance(tree, str | bytes | bytearray | range | torch.Size)
        return [] if is_flat else list(enumerate(tree))
    if isinstance(tree, type | nn.Module) or not hasattr(tree, "__dict__"):
        return []
    listed = _listed(tree)
    own = vars(tree) if listed is None else listed
    names = [name for name in own if isinstance(name, str) and not name.startswith("_")]
    return [(name, getattr(tree, name)) for name in names if hasattr(tree, name)]


def describe(tree: Any) -> str:
    """Say in a few words what ``tree`` is, for error messages."""
    if isinstance(tree, Tensor):
        return f"a tensor {list(tree.shape)} of {tree.dtype}"
    keys = [str(key) for key, _ in children(tree)]
    return f"a {type(tree).__name__}" + (f" with keys {keys}" if keys else "")


def _child(tree: Any, key: Key) -> Any:
    if isinstance(tree, Mapping):
        # A TensorDict would take a number for a row, and has no number among its keys to ask for.
        if key not in (tree if isinstance(key, str) else list(tree.keys())):
            raise KeyError(key)
        return tree[key]
    is_sequence = isinstance(tree, Sequence)
    if isinstance(tree, Tensor | str | bytes) or (isinstance(key, int) and not is_sequence):
        raise TypeError("has no places; an index into a tensor would take a row for an argument")
    if isinstance(key, int):
        return tree[key]
    if type(tree) in (list, tuple):
        raise TypeError("has no names but those of its methods")
    return getattr(tree, key)


def _tensors(tree: Any, path: Path, above: tuple[Any, ...]) -> list[tuple[Path, Tensor]]:
    if isinstance(tree, Tensor):
        return [(path, tree)]
    if any(tree is one for one in above):  # an object that knows its owner
        return []
    found = []
    for key, child in children(tree):
        found += _tensors(child, (*path, key), (*above, tree))
    return found


def _listed(tree: Any) -> list[str] | None:
    # Graphs of torch_geometric keep their tensors elsewhere, under the names they list: those of a
    # set, in another order in every process.
    if isinstance(tree, Tensor | Mapping | Sequence | type | nn.Module) or _is_record(tree):
        return None
    names = getattr(tree, "keys", None)
    if not callable(names):
        return None
    return sorted(name for name in names() if isinstance(name, str))


def _is_record(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def _is_named(tree: Any) -> bool:
    return isinstance(tree, tuple) and hasattr(tree, "_fields")
