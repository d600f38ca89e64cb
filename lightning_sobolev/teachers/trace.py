r"""Laplacians and other traces :math:`\mathrm{tr}(A H)` of a Hessian as labels."""

from collections.abc import Sequence
from typing import Any, SupportsIndex, cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._groups import basis_of_groups
from lightning_sobolev._types import Directions, InRows, Query
from lightning_sobolev.functional.derivatives import basis_of
from lightning_sobolev.functional.projections import draw, generator_for
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.along import KnownAlong
from lightning_sobolev.teachers.arrays import Rows, lookup
from lightning_sobolev.teachers.tabulated import flat_rows

_NAME = "TraceTeacher"
_SALT = 6
_INDEPENDENT = ("sphere", "gaussian", "rademacher")


class TraceTeacher(KnownAlong):
    r"""The Laplacian, or :math:`\mathrm{tr}(A H)`, of a scalar output, known at every row.

    With ``probes=None`` the student's trace is exact, a sum over as many Hessian-vector products as
    A has eigenvalues other than zero (the inputs, for the Laplacian): right for few inputs. With
    ``probes=k`` it is estimated from k random directions (Hutchinson 1990):
    :math:`\hat t_p = v_p^\top A H v_p`, :math:`E\,\hat t_p = \mathrm{tr}(A H)`.

    The square of one estimate's error must not be trained on:
    :math:`E (\hat t - t)^2 = (\mathrm{tr}(A H) - t)^2 + \mathrm{Var}\,\hat t`, and the variance, by
    which the off-diagonal part of the student's Hessian is punished, does not vanish at the right
    student. The term therefore multiplies errors of different probes (``discrepancy="product"``),
    whose expectation is :math:`(\mathrm{tr}(A H) - t)^2`, as that of its gradient is. It may be
    negative and keeps some noise at the right student, less with more probes.

    Cost: one Hessian-vector product (about two order-1 projections) for each eigenvalue or probe.
    Assumes row independence. With graphs in one table (``groups=``) the trace is that over all
    nodes of a graph, the number of products that of the largest graph.

    Args:
        trace: Key path of the traces ``[batch]`` or ``[batch, 1]``; NaN is not known.
        matrix: A, ``[D, D]`` or its diagonal ``[D]`` for D input elements, the same at every row;
            None for the identity. Only its symmetric part matters.
        value: Key path of the value, for order-0 terms.
        probes: Number of random directions a step, at least 2; None for the exact trace.
        stores_mapped: Whether the arrays are those of the output behind the spec's output map.

    Raises:
        ValueError: If there is one probe, or the matrix is not square, not finite, or zero.

    Source:
        Hutchinson 1990, A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian
        Smoothing Splines; the product of independent estimates is the U-statistic of a squared mean
        (Hoeffding 1948, A Class of Statistics with Asymptotically Normal Distribution).
    """

    def __init__(
        self, trace: str | int, matrix: Tensor | Sequence[Any] | None = None,
        value: str | int | None = None, *,
        probes: int | None = None, stores_mapped: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(value, stores_mapped=stores_mapped)
        is_count = isinstance(probes, SupportsIndex) and probes >= 2
        require(probes is None or is_count, "probes", "at least 2 or None", probes)
        if probes is None:
            self.default_term = SobolevTerm(
                order=2, projection="basis", num_projections=None, name="trace"
            )
        else:
            self.default_term = SobolevTerm(
                order=2, projection="rademacher", num_projections=probes, discrepancy="product",
                name="trace",
            )  # fmt: skip
        self._trace = _paths.parse(trace, "trace")
        self._factor = None if matrix is None else _factor(matrix)

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return the directions whose products sum up to the trace, or estimate it each."""
        if term.order == 0:
            return None
        self._check(query)
        _check_term(term)
        trace = cast(Tensor, lookup("trace", self._trace, query, _NAME, Rows.of_output(query)))
        require(trace[0:1].numel() == len(trace[0:1]), "trace", "[batch]", list(trace.shape))
        is_exact, groups = term.num_projections is None, query.groups
        of_nodes = groups is not None and (groups.per_row or bool(groups.blocks))
        fits = groups is None or not (of_nodes or self._factor is not None)
        require(fits, "groups", "None with a matrix, several inputs or an output of nodes", groups)
        tangents, weighted = self._exact(query) if is_exact else self._probes(query, term)

        def read(rows: InRows) -> Tensor:
            each = flat_rows(rows * weighted).sum(-1)
            if groups is not None:
                each = groups.summed(each)
            return each.sum(0, keepdim=True) if is_exact else each

        count = 1 if is_exact else len(tangents)
        ones = tangents.new_ones(count, query.outputs)
        target = trace.reshape(1, -1).expand(count, -1)
        return Directions(ones, tangents, read, target)

    def _exact(self, query: Query) -> tuple[InRows, InRows]:
        if query.groups is not None:
            every = basis_of_groups(query.groups, query.x, None, generator_for())
            return every, every / len(every)  # of length sqrt(len)
        if self._factor is None:
            basis = basis_of(query.x)
            return basis, basis
        vectors, signs = self._scaled(query.x)
        each = vectors.reshape(-1, 1, *query.x.shape[1:]).expand(-1, *query.x.shape)
        return each, each * signs.reshape(-1, *[1] * query.x.ndim)

    def _probes(self, query: Query, term: SobolevTerm) -> tuple[InRows, InRows]:
        x = query.x
        rank = x.shape[1:].numel() if self._factor is None else len(self._factor[0])
        drawn = draw(
            cast(str, term.projection), (len(x), rank), num_projections=term.num_projections,
            generator=generator_for(*query.seed, _SALT), dtype=x.dtype, device=x.device,
        )  # fmt: skip
        if self._factor is None:
            tangents = drawn.reshape(len(drawn), *x.shape)
            return tangents, tangents
        vectors, signs = self._scaled(x)
        tangents, weighted = drawn @ vectors, (drawn * signs) @ vectors
        return tangents.reshape(len(drawn), *x.shape), weighted.reshape(len(drawn), *x.shape)

    def _scaled(self, x: Tensor) -> tuple[Float[Tensor, "rank size"], Float[Tensor, " rank"]]:
        assert self._factor is not None
        vectors, signs = self._factor
        size = x.shape[1:].numel()
        require(vectors.shape[1] == size, "matrix", f"of {size} input elements", vectors.shape[1])
        return vectors.to(x), signs.to(x)


def _check_term(term: SobolevTerm) -> None:
    exact = term.num_projections is None and term.discrepancy != "product"
    estimated = term.discrepancy == "product" and term.projection in _INDEPENDENT
    if term.order != 2 or term.band is not None or not (exact or estimated):
        raise ValueError(
            f"term {term.key!r} must be of order 2, with num_projections=None for the exact trace, "
            "or with discrepancy='product' and independent projections: the square of a random "
            f"estimate's error is biased; got order {term.order}, {term.projection!r}, "
            f"num_projections={term.num_projections}, discrepancy={term.discrepancy!r}"
        )


def _factor(given: Any) -> tuple[Tensor, Tensor]:
    # Vectors l and signs s with A = sum of s l l^T over the eigenvalues other than zero.
    require(not isinstance(given, str), "matrix", "a matrix", given)
    matrix = torch.as_tensor(given).detach().cpu().double()
    shape = list(matrix.shape)
    fits = shape and shape[0] > 0 and shape in ([shape[0]], [shape[0]] * 2)
    require(bool(fits), "matrix", "[D, D] or [D]", shape)
    require(bool(matrix.isfinite().all()), "matrix", "finite", "NaN or Inf")
    if matrix.ndim == 1:
        values, vectors = matrix, torch.eye(len(matrix), dtype=torch.float64)
    else:
        values, columns = torch.linalg.eigh((matrix + matrix.T) / 2)
        vectors = columns.T
    kept = values.abs() > 1e-12 * values.abs().amax()
    require(bool(kept.any()), "matrix", "other than zero", matrix.tolist())
    values, vectors = values[kept], vectors[kept]
    return vectors * values.abs().sqrt()[:, None], values.sign()
