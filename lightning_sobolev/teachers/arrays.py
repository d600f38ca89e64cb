"""Arrays of a teacher that stand in the batch, beside the inputs that they belong to."""

import math
import warnings
from numbers import Real
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import unstacked
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


class Rows(NamedTuple):
    """Rows that a query asks about: how many, and their numbers in the batch (None: all)."""

    size: int
    numbers: Tensor | None

    @classmethod
    def of_input(cls, query: Query) -> "Rows":
        """Return the rows of the observed input."""
        return cls(query.x.shape[0], query.rows)

    @classmethod
    def of_output(cls, query: Query) -> "Rows":
        """Return the rows of the output."""
        groups = query.groups
        if groups is None or groups.per_row:
            return cls.of_input(query)
        return cls(groups.count, groups.numbers)

    @classmethod
    def of_blocks(cls, query: Query) -> "list[Rows]":
        """Return the rows of each of several inputs that stand below one another."""
        if query.groups is None:
            return [cls.of_input(query)]
        parts, numbers = query.groups.parts(), query.rows
        return [
            cls(part.stop - part.start, None if numbers is None else numbers[part])
            for part in parts
        ]

    def of(self, array: object) -> Tensor | None:
        """Return the rows of an array; None of what cannot have the whole batch's rows."""
        if not isinstance(array, Tensor) or array.ndim == 0:
            return None
        if self.numbers is None:
            return array if array.shape[0] == self.size else None
        # Numbers on another device are not read: that would wait for it.
        last = self.numbers.max() if self.numbers.is_cpu and len(self.numbers) else -1
        if int(last) >= array.shape[0]:
            return None
        return array.index_select(0, self.numbers.to(array.device))

    def __str__(self) -> str:
        if self.numbers is None:
            return str(self.size)
        return f"at least {int(self.numbers.max()) + 1 if len(self.numbers) else 0}"


def is_factor(scale: object) -> bool:
    """Whether stored derivatives can be multiplied with it, and say something afterwards."""
    is_number = isinstance(scale, Real) and not isinstance(scale, bool)
    return is_number and math.isfinite(cast(float, scale)) and scale != 0.0


def factor(scale: float) -> float:
    """Return what stored arrays are multiplied with.

    Raises:
        ValueError: If it would leave nothing of them.
    """
    require(is_factor(scale), "scale", "a finite number other than zero", scale)
    return float(scale)


def lookup(
    name: str, path: _paths.Path | None, query: Query, teacher: str = "BatchTeacher",
    rows: Rows | None = None,
) -> Tensor | None:  # fmt: skip
    """Return the rows of an array in the batch, in the type and place of the input.

    ``rows`` are those that the array belongs to; None for those of the observed input.

    Raises:
        ValueError: If it has other rows, or complex numbers.
    """
    if path is None:
        return None
    where = f"{teacher}({name}={'.'.join(map(str, path))!r})"
    found = taken(name, path, query, where, rows)
    require(not found.is_complex(), f"{name} in the batch", "real", found.dtype)
    return found.to(device=query.x.device, dtype=query.x.dtype)


def taken(
    name: str, path: _paths.Path, query: Query, where: str, rows: Rows | None = None
) -> Tensor:
    """Return the rows of a tensor in the batch, as it is and without a graph.

    ``name`` stands in the message about what is no such tensor, ``where`` in that about a path
    which leads nowhere; ``rows`` as for :func:`lookup`.

    Raises:
        ValueError: If the path leads to no tensor with these rows.
    """
    array = _paths.get(query.batch, path, where)
    rows = Rows.of_input(query) if rows is None else rows
    found = rows.of(array)
    if found is None:
        raise ValueError(
            f"{name} in the batch must be a tensor with {rows} rows, got {_paths.describe(array)}"
        )
    return found.detach()


def taken_rows(array: object, query: Query) -> Tensor | None:
    """Return the rows that a query asks about; None of what cannot have the whole batch's rows."""
    return Rows.of_input(query).of(array) if _is_dense(array) else None


def _is_dense(array: object) -> bool:
    # What else a batch holds (a sparse graph, a ragged or packed tensor) is nobody's numbers.
    if not isinstance(array, Tensor) or array.layout is not torch.strided:
        return False
    return not (array.is_nested or array.is_quantized or array.is_meta)


def _name(on: BatchFn) -> str:
    known = {function: name for name, function in OUTPUT_MAPS.items()}
    return known.get(on, getattr(on, "__name__", repr(on)))


def _holds_input(query: Query) -> bool:
    """Whether the input is a tensor of the batch, or several ones joined: cast, reshaped."""
    x, groups = query.x.detach(), query.groups
    if groups is None or not groups.blocks:
        return _holds(x.flatten(1) if x.ndim > 1 else x[:, None], Rows.of_input(query), query.batch)
    blocks = zip(unstacked(x, groups.blocks), Rows.of_blocks(query), strict=True)
    return all(_holds(part.reshape(len(part), -1), rows, query.batch) for part, rows in blocks)


def _holds(x: Float[Tensor, "batch axes"], rows: Rows, batch: Any) -> bool:
    if not _paths.tensors(batch) and hasattr(batch, "__dict__"):
        batch = vars(batch)  # an object whose attributes are the batch
    blocks = [rows.of(tensor) for _, tensor in _paths.tensors(batch) if _is_dense(tensor)]
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
