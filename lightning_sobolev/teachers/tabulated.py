"""Derivatives that are data: forces, adjoints, greeks, stored Jacobians."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, InRows, Jet, OutRows, Points, Values


class TabulatedJet:
    """A jet whose value, Jacobian and Hessian are given as arrays, or None.

    Projections are contractions: no network is evaluated. An entry that is NaN makes every
    projection it enters with a factor other than zero NaN, so a target with unknown entries keeps
    most of what is known under ``projection="basis"``, or with cotangents and a scalar output.

    The Jacobian is ``[batch, *out, *in]`` (``*out`` may be missing for a scalar output), the
    Hessian ``[batch, *out, *in, *in]``; ``source`` is the arrays' name in error messages.
    """

    def __init__(
        self, in_shape: Sequence[int], *, value: Tensor | None = None,
        jacobian: Tensor | None = None, hessian: Tensor | None = None, source: str = "the target",
    ) -> None:  # fmt: skip
        self._in_shape, self._source = tuple(in_shape), source
        self._value, self._jacobian, self._hessian = value, jacobian, hessian

    @property
    def value(self) -> Values:
        """The tabulated value."""
        return self._require(self._value, "value", "an order-0 term")

    def vjp(self, cotangents: OutRows) -> InRows:
        """Contract the cotangents with the Jacobian's output axes."""
        jacobian = self._require(self._jacobian, "jacobian", "an order-1 term")
        flat = self._flat(jacobian, "jacobian", cotangents.shape[2:].numel(), 1)
        rows = _contract("bcd,pbc->pbd", flat, _flat_rows(cotangents))
        return rows.reshape(*rows.shape[:2], *self._in_shape)

    def jvp(self, tangents: InRows) -> OutRows:
        """Contract the tangents with the Jacobian's input axes."""
        jacobian = self._require(self._jacobian, "jacobian", "an order-1 term")
        out_shape = jacobian.shape[1 : jacobian.ndim - len(self._in_shape)]
        flat = self._flat(jacobian, "jacobian", out_shape.numel(), 1)
        columns = _contract("bcd,pbd->pbc", flat, _flat_rows(tangents))
        return columns.reshape(*columns.shape[:2], *out_shape)

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        """Contract the Hessian with a cotangent and a tangent."""
        hessian = self._require(self._hessian, "hessian", "an order-2 term")
        flat = self._flat(hessian, "hessian", cotangents.shape[2:].numel(), 2)
        u, v = _flat_rows(cotangents), _flat_rows(tangents)
        return _contract("bcde,pbc,pbe->pbd", flat, u, v).reshape(tangents.shape)

    def _require(self, array: Tensor | None, name: str, user: str) -> Tensor:
        if array is None:
            raise ValueError(f"{user} needs {name}=..., but {self._source} gives no {name}")
        return array

    def _flat(self, array: Tensor, name: str, out_size: int, order: int) -> Tensor:
        in_size = torch.Size(self._in_shape).numel()
        inner = self._in_shape * order
        split = array.ndim - len(inner)
        outer = array.shape[1:split]
        # The size alone would let a transposed array pass.
        if split < 1 or array.shape[split:] != inner or outer.numel() != out_size:
            expected = "*in, " * (order - 1) + "*in"
            raise ValueError(
                f"{name} of {self._source} must have shape [batch, *out, {expected}] with *in = "
                f"{list(self._in_shape)} and {out_size} outputs, got {list(array.shape)}"
            )
        return array.reshape(array.shape[0], out_size, *[in_size] * order)


def _flat_rows(directions: Tensor) -> Float[Tensor, "proj batch size"]:
    return directions.reshape(*directions.shape[:2], directions.shape[2:].numel())


def _contract(equation: str, array: Tensor, *directions: Tensor) -> Tensor:
    # Sums of products; NaN or Inf times zero is zero.
    finite = array.isfinite()
    sums = torch.einsum(equation, array.masked_fill(~finite, 0.0), *directions)
    if bool(finite.all()):
        return sums
    # NaN after Inf: a sum of both is not known.
    for kind, result in ((array.isinf(), torch.inf), (array.isnan(), torch.nan)):
        entered = torch.einsum(equation, kind.to(array.dtype), *[d.abs() for d in directions]) > 0
        sums = sums.masked_fill(entered, result)
    return sums


class BatchTeacher:
    """Derivatives that arrive in the batch, beside the inputs and values.

    NaN entries mean "not known": they are masked out, and rows without any known entry are counted
    in the log. The output map of the spec is not applied to stored arrays.

    Args:
        jacobian: Key path of the Jacobian ``[batch, *out, *in]`` in the batch, e.g. ``"forces"``
            or ``"2"`` for the third element of a tuple. Where ``wrt`` names several inputs: one
            array for all, ``[batch, *out, D_1 + D_2 + ...]``, or a list with one array for each.
        value: Key path of the value, for order-0 terms.
        hessian: Key path of the Hessian, for order-2 terms.

    Raises:
        ValueError: If no path is given.
    """

    allows_unknown = True

    def __init__(
        self,
        jacobian: str | int | Sequence[str | int] | None = None,
        value: str | int | None = None,
        hessian: str | int | None = None,
    ) -> None:
        parts = jacobian if not isinstance(jacobian, str | int | None) else ()
        self._parts = [_paths.parse(part) for part in parts]
        whole = jacobian if isinstance(jacobian, str | int) else None
        paths = {"value": value, "jacobian": whole, "hessian": hessian}
        if not self._parts and all(path is None for path in paths.values()):
            raise ValueError(
                "BatchTeacher needs a key path for jacobian, value or hessian, got none"
            )
        self._paths = {k: None if p is None else _paths.parse(p) for k, p in paths.items()}

    def at(self, x: Points, on: BatchFn, batch: Any = None) -> Jet:
        """Return the jet stored in ``batch``."""
        del on
        if batch is None:
            raise ValueError("BatchTeacher needs the batch, but training_step was given none")
        arrays = {name: lookup(name, path, x, batch) for name, path in self._paths.items()}
        if self._parts:
            parts = [lookup("jacobian", path, x, batch) for path in self._parts]
            arrays["jacobian"] = _joined([part for part in parts if part is not None], x)
        return TabulatedJet(x.shape[1:], source="the batch", **arrays)


def lookup(
    name: str, path: _paths.Path | None, x: Tensor, batch: Any, teacher: str = "BatchTeacher"
) -> Tensor | None:
    """Return the array of a teacher that stands in the batch, in the type and place of ``x``."""
    if path is None:
        return None
    array = _paths.get(batch, path, f"{teacher}({name}={'.'.join(map(str, path))!r})")
    if not isinstance(array, Tensor) or array.ndim == 0 or array.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} in the batch must be a tensor with {x.shape[0]} rows, "
            f"got {_paths.describe(array)}"
        )
    return array.detach().to(device=x.device, dtype=x.dtype)


def _joined(parts: list[Tensor], x: Tensor) -> Float[Tensor, "batch out in"]:
    # All inputs have the same outputs, so the sizes give them.
    total = sum(part.shape[1:].numel() for part in parts)
    outputs, rest = divmod(total, x.shape[1:].numel())
    if rest or any(part.shape[1:].numel() % max(outputs, 1) for part in parts):
        got = [list(part.shape) for part in parts]
        raise ValueError(
            f"jacobian: the arrays of several inputs must be [batch, *out, *in] with "
            f"{x.shape[1:].numel()} input elements in all, got {got}"
        )
    return torch.cat([part.reshape(len(part), outputs, -1) for part in parts], 2)
