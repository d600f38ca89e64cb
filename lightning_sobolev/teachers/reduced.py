r"""Jacobians that are known between two reduced bases, :math:`U J V^\top`."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import Groups
from lightning_sobolev._types import Directions, InRows, Jet, OutRows, Query, Teacher
from lightning_sobolev.functional.projections import PROJECTIONS, draw, generator_for
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.arrays import BatchCheck, Rows, lookup
from lightning_sobolev.teachers.tabulated import TabulatedJet, contract, flat_rows

_NAME = "ReducedTeacher"
_LEFT, _RIGHT = 3, 4

Basis = Tensor | str | int | None
"""Basis vectors ``[r, *space]`` of all rows, or the key path of ``[batch, r, *space]``."""


class ReducedTeacher(Teacher):
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
        ValueError: If there is no basis, or a metric is not positive.

    Source:
        O'Leary-Roseberry et al. 2024, Derivative-Informed Neural Operator (arXiv:2206.10745):
        reduced Jacobians; there the whole of R is compared.
    """

    allows_unknown = True

    def __init__(
        self,
        reduced: str | int,
        left: Basis = None,
        right: Basis = None,
        value: str | int | None = None,
        *,
        left_metric: Tensor | None = None,
        right_metric: Tensor | None = None,
        stores_mapped: bool = False,
    ) -> None:
        require(left is not None or right is not None, "left", "given, or right", None)
        self._paths = {"reduced": _paths.parse(reduced, "reduced")}
        if value is not None:
            self._paths["value"] = _paths.parse(value, "value")
        self._bases: dict[str, Tensor | None] = {"left": None, "right": None}
        for name, basis in (("left", left), ("right", right)):
            if isinstance(basis, str | int):
                self._paths[name] = _paths.parse(basis, name)
            elif basis is not None:
                self._bases[name] = torch.as_tensor(basis).detach()
        self._metrics = {
            "left": _root("left_metric", left_metric), "right": _root("right_metric", right_metric)
        }  # fmt: skip
        self._check = BatchCheck(_NAME, stores_mapped=stores_mapped)

    def at(self, query: Query) -> Jet:
        """Return the value in the query's batch; derivatives come with their directions."""
        self._check(query)
        outputs, path = Rows.of_output(query), self._paths.get("value")
        value = lookup("value", path, query, _NAME, outputs)
        return TabulatedJet(query.x.shape[1:], value=value, source="the batch")

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
        self, query: Query, term: SobolevTerm, left: Tensor | None, right: Tensor | None
    ) -> Directions:
        reduced, out_shape = self._reduced(query, left, right)
        c = self._drawn("left", query, term, reduced.shape[1])
        cotangents = c.reshape(*c.shape[:2], *out_shape) if left is None else _combined(c, left)
        per_node = right is None and query.groups is not None
        each = query.groups.spread(c) if per_node and query.groups is not None else c
        target = contract("bcd,pbc->pbd", reduced, each)

        def read(rows: InRows) -> Tensor:
            found = flat_rows(rows) if right is None else _along(rows, right, query.groups)
            return self._weighted("right", found)

        return Directions(cotangents, read=read, target=self._weighted("right", target))

    def _pushed(
        self, query: Query, term: SobolevTerm, left: Tensor | None, right: Tensor | None
    ) -> Directions:
        reduced, _ = self._reduced(query, left, right)
        groups = query.groups
        require(right is not None or groups is None, "right", "given with groups=", right)
        d = self._drawn("right", query, term, reduced.shape[2])
        each = d if groups is None else d.index_select(1, groups.index)
        tangents = each.reshape(-1, *query.x.shape) if right is None else _combined(each, right)
        target = contract("bcd,pbd->pbc", reduced, d)

        def read(columns: OutRows) -> Tensor:
            found = flat_rows(columns) if left is None else _along(columns, left, None)
            return self._weighted("left", found)

        weighted = self._weighted("left", target)
        return Directions(tangents=tangents, read=read, target=weighted)

    def _basis(self, name: str, query: Query, rows: Rows) -> Float[Tensor, "rows r *space"] | None:
        if name in self._paths:
            return lookup(name, self._paths[name], query, _NAME, rows)
        basis = self._bases[name]
        return None if basis is None else basis.to(query.x).expand(rows.size, *basis.shape)

    def _reduced(
        self, query: Query, left: Tensor | None, right: Tensor | None
    ) -> tuple[Float[Tensor, "rows r_out r_in"], tuple[int, ...]]:
        # The reduced Jacobians, and the shape of an output where that is not reduced.
        in_shape = tuple(query.x.shape[1:])
        rows = Rows.of_input(query) if right is None else Rows.of_output(query)
        given = cast(Tensor, lookup("reduced", self._paths["reduced"], query, _NAME, rows))
        ends = in_shape if right is None else tuple(right.shape[1:2])
        split = given.ndim - len(ends)
        starts = tuple(given.shape[1:split])
        fits = tuple(given.shape[split:]) == ends and (left is None or starts == left.shape[1:2])
        if split < 1 or not fits or (right is not None and right.shape[2:] != in_shape):
            bases = [None if basis is None else list(basis.shape[1:]) for basis in (left, right)]
            raise ValueError(
                "reduced must have shape [batch, r_out, r_in] (whole spaces where there is no "
                f"basis) with left [r_out, *out] and right [r_in, *in], *in = {list(in_shape)}, "
                f"got {list(given.shape)} with left and right {bases}"
            )
        return given.reshape(len(given), torch.Size(starts).numel(), -1), starts

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


def _root(name: str, metric: Tensor | None) -> Tensor | None:
    # L of W = L L^T.
    if metric is None:
        return None
    given = torch.as_tensor(metric).detach()
    if given.ndim == 1 and bool((given >= 0).all()) and bool(given.isfinite().all()):
        return given.sqrt()
    if given.ndim == 2 and given.shape[0] == given.shape[1] and torch.allclose(given, given.T):
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(given)
        if not int(failed):
            return factor
    raise ValueError(
        f"{name} must be weights >= 0 or a positive definite matrix, got {list(given.shape)}"
    )


def _combined(
    coefficients: Float[Tensor, "proj rows r"], basis: Float[Tensor, "rows r *space"]
) -> Float[Tensor, "proj rows *space"]:
    found = torch.einsum("pbr,brd->pbd", coefficients, _flat(basis))
    return found.reshape(*found.shape[:2], *basis.shape[2:])


def _along(
    rows: Float[Tensor, "proj rows *space"], basis: Float[Tensor, "rows r *space"],
    groups: Groups | None,
) -> Float[Tensor, "proj outputs r"]:  # fmt: skip
    if flat_rows(rows).shape[2] != basis.shape[2:].numel():
        raise ValueError(
            f"left must have vectors of the output's shape {list(rows.shape[2:])}, "
            f"got {list(basis.shape[2:])}"
        )
    found = torch.einsum("pbd,brd->pbr", flat_rows(rows), _flat(basis))
    return found if groups is None else groups.summed(found)


def _flat(basis: Float[Tensor, "rows r *space"]) -> Float[Tensor, "rows r size"]:
    return basis.reshape(*basis.shape[:2], basis.shape[2:].numel())
