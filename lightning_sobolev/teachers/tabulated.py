"""Derivatives that are data: forces, adjoints, greeks, stored Jacobians."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import InRows, Jet, OutRows, Query, Teacher, Values
from lightning_sobolev.teachers.arrays import BatchCheck, Rows, is_factor, lookup


class TabulatedJet:
    """A jet whose value, Jacobian and Hessian are given as arrays, or None.

    Projections are contractions: no network is evaluated. An entry that is NaN makes every
    projection it enters with a factor other than zero NaN, so a target with unknown entries keeps
    most of what is known under ``projection="basis"``, or with cotangents and a scalar output.

    The Jacobian is ``[batch, *out, *in]`` (``*out`` may be missing for a scalar output), the
    Hessian ``[batch, *out, *in, *in]``; ``source`` is the arrays' name in error messages. With
    ``groups`` the Jacobian has a row for each input row (the gradient of its graph's output), and
    the Hessian of a scalar output is one flat array: the rows of each graph's square matrix, graph
    after graph.
    """

    def __init__(
        self, in_shape: Sequence[int], *, value: Tensor | None = None,
        jacobian: Tensor | None = None, hessian: Tensor | None = None, source: str = "the target",
        groups: Groups | None = None,
    ) -> None:  # fmt: skip
        self._in_shape, self._source, self._groups = tuple(in_shape), source, groups
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
        each = cotangents if self._groups is None else self._groups.spread(cotangents)
        rows = contract("bcd,pbc->pbd", flat, flat_rows(each))
        return rows.reshape(*rows.shape[:2], *self._in_shape)

    def jvp(self, tangents: InRows) -> OutRows:
        """Contract the tangents with the Jacobian's input axes."""
        jacobian, groups = self.jacobian, self._groups
        out_shape = jacobian.shape[1 : jacobian.ndim - len(self._in_shape)]
        flat = self._flat(jacobian, "jacobian", out_shape.numel(), 1)
        filled = None if groups is None else groups.filled_up(tangents.device)
        tangents = tangents if filled is None else tangents.masked_fill(filled, 0.0)
        columns = contract("bcd,pbd->pbc", flat, flat_rows(tangents))
        columns = columns.reshape(*columns.shape[:2], *out_shape)
        if groups is None:
            return columns
        if groups.per_row:
            raise ValueError(
                "side must be 'cotangent' where the output has a row for each node and the stored "
                "derivatives are those of its graph's sum, got 'tangent'"
            )
        return groups.summed(columns)

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        """Contract the Hessian with a cotangent and a tangent."""
        hessian = self._require(self._hessian, "hessian", "an order-2 term")
        if self._groups is not None:
            each = flat_rows(self._groups.spread(cotangents))
            require(each.shape[2] == 1, "output", "a scalar for each graph", cotangents.shape[2:])
            products = ragged_products(hessian, self._groups, tangents)
            return products * each.reshape(*each.shape[:2], *[1] * len(self._in_shape))
        flat = self._flat(hessian, "hessian", cotangents.shape[2:].numel(), 2)
        u, v = flat_rows(cotangents), flat_rows(tangents)
        return contract("bcde,pbc,pbe->pbd", flat, u, v).reshape(tangents.shape)

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


def ragged_products(
    matrices: Float[Tensor, " entries"], groups: Groups, tangents: InRows
) -> InRows:
    """Multiply the square matrix of every group, flat and one behind the other, with its tangents.

    The matrix of a group of n rows with D elements has :math:`(n D)^2` entries. The rows of a group
    need not be neighbours; its matrix has them in their order.

    Returns:
        A product for each row.

    Raises:
        ValueError: If there are more or fewer entries.
    """
    proj, width = len(tangents), tangents.shape[2:].numel()
    sizes = groups.sizes() * width
    if matrices.ndim != 1 or len(matrices) != int(sizes.square().sum()):
        raise ValueError(
            f"hessian must be one flat array with (nodes x {width})^2 entries for each graph, "
            f"{int(sizes.square().sum())} in all, got {list(matrices.shape)}"
        )
    order = groups.index.argsort(stable=True)
    sorted_rows = tangents[:, order].reshape(proj, -1)
    starts = sizes.cumsum(0) - sizes
    row_sizes = sizes.repeat_interleave(sizes)  # for each row of a matrix: how long it is
    row = torch.arange(len(row_sizes), device=matrices.device).repeat_interleave(row_sizes)
    first = (row_sizes.cumsum(0) - row_sizes)[row]
    column = torch.arange(len(matrices), device=matrices.device) - first
    column = column + starts.repeat_interleave(sizes)[row]
    entered = sorted_rows[:, column]
    # NaN is not known; times zero it does not enter.
    products = torch.where(entered == 0, 0.0, matrices * entered)
    sums = torch.zeros_like(sorted_rows).index_add(1, row, products)
    found = torch.empty_like(tangents)
    found[:, order] = sums.reshape(tangents.shape)
    return found


def flat_rows(directions: Tensor) -> Float[Tensor, "proj batch size"]:
    """Return the elements of every row in one axis."""
    return directions.reshape(*directions.shape[:2], directions.shape[2:].numel())


def contract(equation: str, array: Tensor, *directions: Tensor) -> Tensor:
    """Sum products as ``einsum`` does, but for this: NaN or Inf times zero is zero."""
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
        jacobian: Key path of the Jacobian ``[batch, *out, *in]`` in the batch, e.g. ``"gradient"``
            or ``"2"`` for the third element of a tuple. Where ``wrt`` names several inputs: one
            array for all, ``[batch, *out, D_1 + D_2 + ...]``, or a list with one array for each,
            which must be so where they have different numbers of rows. With ``groups`` it has a row
            for each node: the derivative of its graph's output.
        value: Key path of the value, for order-0 terms.
        hessian: Key path of the Hessian, for order-2 terms: ``[batch, *out, *in, *in]``, or with
            ``groups`` one flat array, the matrix of each graph behind that of the one before.
        forces: Key path of the negative Jacobian, in its place; a list as there.
        scale: What the stored Jacobian is multiplied with to be that of the student's output in its
            input, both in the units of training: a number, or one for each array of a list.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map,
            which is refused otherwise: it is not applied to stored arrays.

    Raises:
        ValueError: If no path is given, or both ``jacobian`` and ``forces``.
    """

    allows_unknown = True

    def __init__(
        self,
        jacobian: str | int | Sequence[str | int] | None = None,
        value: str | int | None = None,
        hessian: str | int | None = None,
        *,
        forces: str | int | Sequence[str | int] | None = None,
        scale: float | Sequence[float] = 1.0,
        stores_mapped: bool = False,
    ) -> None:
        require(jacobian is None or forces is None, "forces", "None beside jacobian=", forces)
        given = jacobian if forces is None else forces
        several = not isinstance(given, str | int | None)
        self._name = "jacobian" if forces is None else "forces"
        self._parts = _parsed(given, self._name)
        self._factors = _factors(scale, len(self._parts), -1.0 if forces is not None else 1.0)
        self._joins = several
        paths = {"value": value, "hessian": hessian}
        if not self._parts and all(path is None for path in paths.values()):
            raise ValueError(
                "BatchTeacher needs a key path for jacobian, forces, value or hessian, got none"
            )
        self._paths = {k: None if p is None else _paths.parse(p, k) for k, p in paths.items()}
        self._check = BatchCheck("BatchTeacher", stores_mapped=stores_mapped)

    @property
    def gives(self) -> frozenset[str]:
        """Which of value, jacobian and hessian it reads from a batch."""
        named = {name for name, path in self._paths.items() if path is not None}
        return frozenset(named | ({"jacobian"} if self._parts else set()))

    @property
    def is_stored(self) -> bool:
        """True: the batch has derivatives at its own inputs."""
        return True

    def at(self, query: Query) -> Jet:
        """Return the jet stored in the query's batch."""
        self._check(query)
        return TabulatedJet(
            query.x.shape[1:], source="the batch", groups=query.groups,
            value=lookup("value", self._paths["value"], query, rows=Rows.of_output(query)),
            jacobian=self._jacobian(query), hessian=self._hessian(query),
        )  # fmt: skip

    def _jacobian(self, query: Query) -> Tensor | None:
        if not self._parts:
            return None
        has_blocks = query.groups is not None and bool(query.groups.blocks)
        rows = Rows.of_blocks(query) if has_blocks else [Rows.of_input(query)] * len(self._parts)
        require(len(rows) == len(self._parts), self._name, f"{len(rows)} arrays", len(self._parts))
        parts = []
        for path, factor, own in zip(self._parts, self._factors, rows, strict=True):
            part = cast(Tensor, lookup(self._name, path, query, rows=own))
            parts.append(part if factor == 1.0 else part * factor)
        if has_blocks:
            return _stacked(self._name, parts, query)
        return _joined(self._name, parts, query.x) if self._joins else parts[0]

    def _hessian(self, query: Query) -> Tensor | None:
        path = self._paths["hessian"]
        if path is None or query.groups is None:
            return lookup("hessian", path, query)
        require(query.rows is None, "rows", "1.0 with the flat Hessians of graphs", "a part")
        array = _paths.get(query.batch, path, "BatchTeacher(hessian)")
        require(isinstance(array, Tensor), "hessian", "a tensor", type(array).__name__)
        return cast(Tensor, array).detach().to(query.x)


def _parsed(given: str | int | Sequence[str | int] | None, name: str) -> list[_paths.Path]:
    if given is None:
        return []
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    return [_paths.parse(one, name) for one in several]


def _factors(scale: float | Sequence[float], count: int, sign: float) -> list[float]:
    is_list = isinstance(scale, Sequence) and not isinstance(scale, str)
    numbers: Any = scale if is_list else [scale] * count
    fits = len(numbers) == count and all(map(is_factor, numbers))
    require(fits, "scale", f"a finite number other than zero, or {count} of them", scale)
    # Hessians are taken as they are.
    require(count > 0 or scale == 1.0, "scale", "1.0 without jacobian= or forces=", scale)
    return [sign * float(number) for number in numbers]


def _stacked(name: str, parts: list[Tensor], query: Query) -> Float[Tensor, "rows out width"]:
    # Arrays of inputs with different numbers of rows; what is only filled up is not known.
    assert query.groups is not None
    sizes = [block.width for block in query.groups.blocks]
    outputs = {part.shape[1:].numel() // size for part, size in zip(parts, sizes, strict=True)}
    shapes = [list(part.shape) for part in parts]
    fits = len(outputs) == 1 and all(
        part.shape[1:].numel() == next(iter(outputs)) * size
        for part, size in zip(parts, sizes, strict=True)
    )
    require(fits, name, "arrays [rows, *out, *in] with the same outputs", shapes)
    (count,), width = outputs, max(sizes)
    return torch.cat([
        torch.nn.functional.pad(
            part.reshape(len(part), count, size), (0, width - size), value=torch.nan
        )
        for part, size in zip(parts, sizes, strict=True)
    ])  # fmt: skip


def _joined(name: str, parts: list[Tensor], x: Tensor) -> Float[Tensor, "batch out in"]:
    # All inputs have the same outputs, so the sizes give them.
    total = sum(part.shape[1:].numel() for part in parts)
    outputs, rest = divmod(total, x.shape[1:].numel())
    if rest or any(part.shape[1:].numel() % max(outputs, 1) for part in parts):
        got = [list(part.shape) for part in parts]
        raise ValueError(
            f"{name}: the arrays of several inputs must be [batch, *out, *in] with "
            f"{x.shape[1:].numel()} input elements in all, got {got}"
        )
    sizes = [part.shape[1:].numel() // max(outputs, 1) for part in parts]
    pairs = zip(parts, sizes, strict=True)
    return torch.cat([part.reshape(len(part), outputs, size) for part, size in pairs], 2)
