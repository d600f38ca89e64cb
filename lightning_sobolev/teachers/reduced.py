r"""Jacobians that are known between two reduced bases, :math:`U J V^\top`."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions, InRows, OutRows, Query
from lightning_sobolev.functional.projections import PROJECTIONS, draw, generator_for
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.along import KnownAlong
from lightning_sobolev.teachers.arrays import Rows, lookup
from lightning_sobolev.teachers.bases import Vectors, root
from lightning_sobolev.teachers.tabulated import contract, flat_rows

_NAME = "ReducedTeacher"
_LEFT, _RIGHT = 3, 4

Basis = Tensor | Sequence[Any] | str | int | None
"""Basis vectors ``[r, *space]`` of all rows, or the key path of ``[batch, r, *space]``."""


class ReducedTeacher(KnownAlong):
    r"""Reduced Jacobians :math:`R_b = U J(x_b) V^\top` that arrive in the batch.

    The rows of U and V are basis vectors of output and input (proper orthogonal modes, active
    subspaces, modes of vibration, sensors); they need not be orthogonal. With
    ``side="cotangent"`` one random combination :math:`c^\top U` is pulled back and read along V,

    .. math:: \big| W_V^{1/2} (V J^\top U^\top c - R^\top c) \big|^2,

    with ``side="tangent"`` one of V is pushed forward and read along U. The expectation over
    :math:`E[c c^\top] = W_U` is the whole
    :math:`\mathrm{tr}(W_U\,\Delta\,W_V\,\Delta^\top)` of the error
    :math:`\Delta = U J V^\top - R`. ``projection="basis", num_projections=k`` takes k of the basis
    vectors at random, ``None`` all of them.

    Cost: one vjp or jvp for each projection, whatever the sizes of the bases. Assumes row
    independence. With graphs in one table (``groups=``) U belongs to the output of each graph and
    a key path of V has the rows of the nodes: :math:`R` is that of displacements of whole graphs.

    Rows with fewer vectors than others are filled up with NaN: what is compared is the part of
    :math:`\Delta` that belongs to the vectors that are known.

    Args:
        reduced: Key path of R, ``[batch, r_out, r_in]``; where a basis is None, the whole space
            stands in its place: ``[batch, *out, r_in]``, ``[batch, r_out, *in]``.
        left: U, ``[r_out, *out]`` for all rows, or the key path of ``[batch, r_out, *out]``.
        right: V, ``[r_in, *in]``, or the key path of ``[batch, r_in, *in]``; the transpose of a
            matrix whose columns are the vectors.
        value: Key path of the (whole) value, for order-0 terms.
        left_metric: :math:`W_U`, weights ``[r_out]`` or a positive definite matrix; None for 1.
        right_metric: :math:`W_V`, the same for ``r_in``.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map.

    Raises:
        ValueError: If there is no basis, one is not finite, or a metric is not positive.

    Source:
        O'Leary-Roseberry et al. 2024, Derivative-Informed Neural Operator (arXiv:2206.10745):
        reduced Jacobians; there the whole of R is compared.
    """

    def __init__(
        self,
        reduced: str | int,
        left: Basis = None,
        right: Basis = None,
        value: str | int | None = None,
        *,
        left_metric: Tensor | Sequence[Any] | None = None,
        right_metric: Tensor | Sequence[Any] | None = None,
        stores_mapped: bool = False,
    ) -> None:
        super().__init__(value, stores_mapped=stores_mapped)
        require(left is not None or right is not None, "left", "given, or right", None)
        self._paths = {"reduced": _paths.parse(reduced, "reduced")}
        self._bases: dict[str, Tensor | None] = {"left": None, "right": None}
        for name, basis in (("left", left), ("right", right)):
            if isinstance(basis, str | int):
                self._paths[name] = _paths.parse(basis, name)
            elif basis is not None:
                self._bases[name] = _constant(name, basis)
        self._metrics = {
            "left": root("left_metric", left_metric), "right": root("right_metric", right_metric)
        }  # fmt: skip

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return random combinations of one basis, and what is known of them along the other."""
        if term.order == 0:
            return None
        self._check(query)
        _check_term(term)
        groups = query.groups
        plain = groups is None or not (groups.blocks or groups.per_row)
        require(plain, "groups", f"of one input and an output for each graph with {_NAME}", groups)
        left = self._basis("left", query, Rows.of_output(query))
        right = self._basis("right", query, Rows.of_input(query))
        if term.side == "cotangent":
            return self._pulled(query, term, left, right)
        return self._pushed(query, term, left, right)

    def _pulled(
        self, query: Query, term: SobolevTerm, left: Vectors | None, right: Vectors | None
    ) -> Directions:
        reduced, out_shape = self._reduced(query, left, right)
        c = self._drawn("left", query, term, reduced.shape[1])
        c = c if left is None else left.known_alone(c)
        cotangents = c.reshape(*c.shape[:2], *out_shape) if left is None else left.combined(c)
        per_node = right is None and query.groups is not None
        each = query.groups.spread(c) if per_node and query.groups is not None else c
        target = contract("bcd,pbc->pbd", reduced, each)

        def read(rows: InRows) -> Tensor:
            found = flat_rows(rows) if right is None else right.along(rows, query.groups)
            return self._weighted("right", found)

        return Directions(cotangents, read=read, target=self._weighted("right", target))

    def _pushed(
        self, query: Query, term: SobolevTerm, left: Vectors | None, right: Vectors | None
    ) -> Directions:
        reduced, _ = self._reduced(query, left, right)
        groups = query.groups
        require(right is not None or groups is None, "right", "given with groups=", right)
        d = self._drawn("right", query, term, reduced.shape[2])
        d = d if right is None else right.known_alone(d)
        each = d if groups is None else d.index_select(1, groups.index)
        tangents = (
            each.reshape(len(each), *query.x.shape) if right is None else right.combined(each)
        )
        target = contract("bcd,pbd->pbc", reduced, d)

        def read(columns: OutRows) -> Tensor:
            found = flat_rows(columns) if left is None else left.along(columns, None)
            return self._weighted("left", found)

        weighted = self._weighted("left", target)
        return Directions(tangents=tangents, read=read, target=weighted)

    def _basis(self, name: str, query: Query, rows: Rows) -> Vectors | None:
        if name in self._paths:
            given = cast(Tensor, lookup(name, self._paths[name], query, _NAME, rows))
            require(given.ndim > 1, name, "[batch, r, *space] in the batch", list(given.shape))
            return Vectors.read(given, query.groups if name == "right" else None)
        basis = self._bases[name]
        if basis is None:
            return None
        return Vectors(basis.to(query.x).expand(rows.size, *basis.shape))

    def _reduced(
        self, query: Query, left: Vectors | None, right: Vectors | None
    ) -> tuple[Float[Tensor, "rows r_out r_in"], tuple[int, ...]]:
        # The reduced Jacobians, and the shape of an output where that is not reduced.
        in_shape = tuple(query.x.shape[1:])
        rows = Rows.of_input(query) if right is None else Rows.of_output(query)
        given = cast(Tensor, lookup("reduced", self._paths["reduced"], query, _NAME, rows))
        ends = in_shape if right is None else (right.count,)
        split = given.ndim - len(ends)
        starts = tuple(given.shape[1:split])
        fits = tuple(given.shape[split:]) == ends and (left is None or starts == (left.count,))
        if split < 1 or not fits or (right is not None and right.each.shape[2:] != in_shape):
            bases = [None if one is None else list(one.each.shape[1:]) for one in (left, right)]
            raise ValueError(
                "reduced must have shape [batch, r_out, r_in] (whole spaces where there is no "
                f"basis) with left [r_out, *out] and right [r_in, *in], *in = {list(in_shape)}, "
                f"got {list(given.shape)} with left and right {bases}"
            )
        given = given.reshape(len(given), torch.Size(starts).numel(), torch.Size(ends).numel())
        index = query.groups.index if right is None and query.groups is not None else None
        given = given if left is None else left.marked(given, 1, index)
        return (given if right is None else right.marked(given, 2)), starts

    def _drawn(self, name: str, query: Query, term: SobolevTerm, size: int) -> Tensor:
        salt = _LEFT if name == "left" else _RIGHT
        x, law = query.x, cast(str, term.projection)
        drawn = draw(
            law, (query.outputs, size), num_projections=term.num_projections,
            generator=generator_for(*query.seed, salt), dtype=x.dtype, device=x.device,
        )  # fmt: skip
        return self._weighted(name, drawn, transposed=True)

    def _weighted(self, name: str, rows: Tensor, *, transposed: bool = False) -> Tensor:
        root = self._metrics[name]
        if root is None:
            return rows
        if rows.shape[-1] != len(root):
            raise ValueError(
                f"{name}_metric must have {rows.shape[-1]} weights, got {list(root.shape)}"
            )
        root = root.to(rows)
        if root.ndim == 1:
            return rows * root
        return rows @ (root.T if transposed else root)


def _check_term(term: SobolevTerm) -> None:
    fits = term.order == 1 and term.projection in PROJECTIONS
    got = f"order {term.order}, projection {term.projection!r}"
    require(fits, f"term {term.key!r}", f"of order 1 with a projection of {PROJECTIONS}", got)


def _constant(name: str, basis: Any) -> Tensor:
    given = torch.as_tensor(basis).detach()
    fits = given.ndim > 0 and bool(given.isfinite().all())
    got = list(given.shape) if given.ndim == 0 else "NaN or Inf"
    require(fits, name, "finite vectors [r, *space]", got)
    return given
