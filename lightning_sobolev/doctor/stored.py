"""Stored labels at a point of evaluation: Jacobians, and the values that belong to them."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import Query, identity
from lightning_sobolev.loss.loss import Point
from lightning_sobolev.teachers.arrays import taken_rows
from lightning_sobolev.teachers.tabulated import TabulatedJet


class StoredLabels(NamedTuple):
    """Values and Jacobians as arrays, and which tensor of the batch the values are, if any."""

    jet: TabulatedJet
    values: str | None


def stored_labels(point: Point) -> StoredLabels | None:
    """Return what is stored at a point, with values.

    They are the teacher's, or the one tensor of the batch with the shape of the student's output.

    Returns:
        The labels; None where there are none, or no values that belong to them.
    """
    query, target, student = point.query, point.target, point.student
    if not isinstance(target, TabulatedJet) or student is None or "jacobian" not in target.gives:
        return None
    x, jacobian, shape = query.x, target.jacobian, student.value.shape
    size = shape[1:].numel() * x.shape[1:].numel()
    if len(x) != shape[0] or len(jacobian) != len(x) or jacobian.shape[1:].numel() != size:
        return None
    name, value = None, target.value if "value" in target.gives else None
    if value is None:
        name, value = _only_values(query, jacobian, shape)
    if value is None or value.numel() != shape.numel() or len(value) != len(x):
        return None
    jet = TabulatedJet(x.shape[1:], value=value.reshape(shape), jacobian=jacobian)
    return StoredLabels(jet, name)


def _only_values(
    query: Query, jacobian: Tensor, shape: torch.Size
) -> tuple[str | None, Tensor | None]:
    # What may be the labels' values; of several none is known to be.
    if query.on is not identity:
        return None, None
    others = [
        other.reshape(shape) for other in (query.x, jacobian) if other.numel() == shape.numel()
    ]
    found = []
    for path, tensor in _paths.tensors(query.batch):
        rows = taken_rows(tensor, query) if tensor.is_floating_point() else None
        if rows is None or len(rows) != shape[0] or rows.numel() != shape.numel():
            continue
        value = rows.detach().to(query.x).reshape(shape)
        if not any(_is_multiple(value, other) for other in others):
            found.append((".".join(map(str, path)), value))
    return found[0] if len(found) == 1 else (None, None)


def _is_multiple(one: Tensor, other: Tensor) -> bool:
    # An array that the teacher has changed the sign or unit of is still that array.
    cosine = (one * other).nansum() / (one.nan_to_num().norm() * other.nan_to_num().norm())
    return bool(cosine.abs() > 1.0 - 1e-6)
