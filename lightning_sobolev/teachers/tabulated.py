"""Derivatives that are data: forces, adjoints, greeks, stored Jacobians."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import InRows, Jet, OutRows, Query, Teacher, Values
from lightning_sobolev.teachers.arrays import BatchCheck, lookup


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
    def gives(self) -> frozenset[str]:
        """Which of value, jacobian and hessian are there."""
        arrays = {"value": self._value, "jacobian": self._jacobian, "hessian": self._hessian}
        return frozenset(name for name, array in arrays.items() if array is not None)

    @property
    def value(self) -> Values:
        """The tabulated value."""
        return self._require(self._value, "value", "an order-0 term")

    @property
    def jacobian(self) -> Float[Tensor, "batch *axes"]:
        """The tabulated Jacobian as it was given, ``[batch, *out, *in]``."""
        return self._require(self._jacobian, "jacobian", "an order-1 term")

    def vjp(self, cotangents: OutRows) -> InRows:
        """Contract the cotangents with the Jacobian's output axes."""
        flat = self._flat(self.jacobian, "jacobian", cotangents.shape[2:].numel(), 1)
        rows = _contract("bcd,pbc->pbd", flat, _flat_rows(cotangents))
        return rows.reshape(*rows.shape[:2], *self._in_shape)

    def jvp(self, tangents: InRows) -> OutRows:
        """Contract the tangents with the Jacobian's input axes."""
        jacobian = self.jacobian
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
    if array.is_cpu and bool(finite.all()):  # elsewhere reading a number waits for the device
        return sums
    # Counts of what entered: one for Inf, for NaN a number that all Infs together do not reach. In
    # float32 a sum of ones is exact up to 2^24, and powers of two survive any rounding.
    for_nan = 2.0 ** min(array[0].numel() if len(array) else 0, 2**24).bit_length()
    counted = array.isinf().float() + for_nan * array.isnan().float()
    entered = torch.einsum(equation, counted, *[(d != 0).float() for d in directions])
    # NaN after Inf: a sum of both is not known.
    sums = sums.masked_fill(entered > 0, torch.inf)
    return sums.masked_fill(entered >= for_nan, torch.nan)


class BatchTeacher(Teacher):
    """Derivatives that arrive in the batch, beside the inputs and values.

    NaN entries mean "not known": they are masked out, and rows without any known entry are counted
    in the log. The derivatives are those with respect to the batch's own inputs: a warning tells
    where the observed input is none of them.

    Args:
        jacobian: Key path of the Jacobian ``[batch, *out, *in]`` in the batch, e.g. ``"forces"``
            or ``"2"`` for the third element of a tuple. Where ``wrt`` names several inputs: one
            array for all, ``[batch, *out, D_1 + D_2 + ...]``, or a list with one array for each.
        value: Key path of the value, for order-0 terms.
        hessian: Key path of the Hessian, for order-2 terms.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map,
            which is refused otherwise: it is not applied to stored arrays.

    Raises:
        ValueError: If no path is given.
    """

    allows_unknown = True

    def __init__(
        self,
        jacobian: str | int | Sequence[str | int] | None = None,
        value: str | int | None = None,
        hessian: str | int | None = None,
        *,
        stores_mapped: bool = False,
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
        self._check = BatchCheck("BatchTeacher", stores_mapped=stores_mapped)

    @property
    def gives(self) -> frozenset[str]:
        """Which of value, jacobian and hessian it reads from a batch."""
        named = {name for name, path in self._paths.items() if path is not None}
        return frozenset(named | ({"jacobian"} if self._parts else set()))

    def at(self, query: Query) -> Jet:
        """Return the jet stored in the query's batch."""
        self._check(query)
        arrays = {name: lookup(name, path, query) for name, path in self._paths.items()}
        if self._parts:
            parts = [lookup("jacobian", path, query) for path in self._parts]
            arrays["jacobian"] = _joined([part for part in parts if part is not None], query.x)
        return TabulatedJet(query.x.shape[1:], source="the batch", **arrays)


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
