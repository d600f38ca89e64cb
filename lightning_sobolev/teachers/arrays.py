"""Arrays of a teacher that stand in the batch, beside the inputs that they belong to."""

import warnings

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, Query, identity
from lightning_sobolev.spec import OUTPUT_MAPS

_LOOKED_AT = 3
"""Queries at the beginning whose input is looked for in the batch."""

_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)


class BatchCheck:
    """Whether a query's batch can hold the derivatives that are asked for.

    Args:
        teacher: Its name in messages.
        stores_mapped: Whether the arrays belong to the mapped output.
    """

    def __init__(self, teacher: str, *, stores_mapped: bool) -> None:
        self._teacher, self._stores_mapped, self._left = teacher, stores_mapped, _LOOKED_AT

    def __call__(self, query: Query) -> None:
        """Raise where the batch is missing or the output is mapped; warn of another input."""
        if query.batch is None:
            raise ValueError(f"{self._teacher} needs the batch, but training_step was given none")
        if query.on is not identity and not self._stores_mapped:
            raise ValueError(
                f"on must be 'identity' with {self._teacher}, whose arrays belong to the output "
                f"itself, got on={_name(query.on)!r}; where they belong to the mapped output, say "
                f"{self._teacher}(..., stores_mapped=True)"
            )
        if self._left and len(query.x):
            self._left -= 1
            if not _holds_input(query):
                self._left = 0
                warnings.warn(
                    f"{self._teacher}: the observed input equals no tensor of the batch, but the "
                    "stored derivatives belong to the batch's own inputs. Observe the module that "
                    "takes those (module=, wrt=), or store derivatives with respect to what is "
                    "observed now; if that is what they are, ignore this",
                    stacklevel=3,
                )


def lookup(
    name: str, path: _paths.Path | None, query: Query, teacher: str = "BatchTeacher"
) -> Tensor | None:
    """Return the queried rows of an array in the batch, in the type and place of the input."""
    if path is None:
        return None
    where = f"{teacher}({name}={'.'.join(map(str, path))!r})"
    return taken(name, path, query, where).to(device=query.x.device, dtype=query.x.dtype)


def taken(name: str, path: _paths.Path, query: Query, where: str) -> Tensor:
    """Return the queried rows of a tensor in the batch, as it is and without a graph.

    ``name`` stands in the message about what is no such tensor, ``where`` in that about a path
    which leads nowhere.

    Raises:
        ValueError: If the path leads to no tensor with these rows.
    """
    array = _paths.get(query.batch, path, where)
    rows = taken_rows(array, query)
    if rows is None:
        raise ValueError(
            f"{name} in the batch must be a tensor with {_expected_rows(query)} rows, "
            f"got {_paths.describe(array)}"
        )
    return rows.detach()


def taken_rows(array: object, query: Query) -> Tensor | None:
    """Return the rows that a query asks about; None of what cannot have the whole batch's rows."""
    if not isinstance(array, Tensor) or array.ndim == 0:
        return None
    if query.rows is None:
        return array if array.shape[0] == query.x.shape[0] else None
    # Numbers on another device are not read: that would wait for it.
    if query.rows.is_cpu and len(query.rows) and int(query.rows.max()) >= array.shape[0]:
        return None
    return array.index_select(0, query.rows.to(array.device))


def _expected_rows(query: Query) -> str:
    if query.rows is None:
        return str(query.x.shape[0])
    return f"at least {int(query.rows.max()) + 1 if len(query.rows) else 0}"


def _name(on: BatchFn) -> str:
    known = {function: name for name, function in OUTPUT_MAPS.items()}
    return known.get(on, getattr(on, "__name__", repr(on)))


def _holds_input(query: Query) -> bool:
    """Whether the input is a tensor of the batch, or several ones joined: cast, reshaped."""
    x = query.x.detach().flatten(1) if query.x.ndim > 1 else query.x.detach()[:, None]
    batch = query.batch
    if not _paths.tensors(batch) and hasattr(batch, "__dict__"):
        batch = vars(batch)  # an object whose attributes are the batch
    blocks = [taken_rows(tensor, query) for _, tensor in _paths.tensors(batch)]
    found = [b.detach().reshape(len(x), -1) for b in blocks if b is not None]
    width, reached, ends = x.shape[1], {0}, [0]
    while ends and width not in reached:
        start = ends.pop()
        for block in found:
            end = start + block.shape[1]
            if end <= width and end not in reached and _is_cast(x[:, start:end], block):
                reached.add(end)
                ends.append(end)
    return width in reached


def _is_cast(x: Float[Tensor, "batch axes"], of: Shaped[Tensor, "batch axes"]) -> bool:
    if of.is_complex():
        return False
    casts = (of.to(x.device, kind).to(x.dtype) for kind in (x.dtype, *_ROUNDED))
    return any(torch.allclose(x, cast, rtol=0.0, atol=0.0, equal_nan=True) for cast in casts)
