"""Derivatives that are known along some directions alone."""

from dataclasses import replace
from typing import Literal, SupportsIndex, cast

from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions, InRows, Query
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.along import KnownAlong
from lightning_sobolev.teachers.arrays import Rows, factor, lookup
from lightning_sobolev.teachers.pairs import Pairs

_NAME = "DirectionalTeacher"
_OF = {"tangents": "pushed", "cotangents": "pulled"}
_SALTS = {"tangents": 1, "cotangents": 2}


class DirectionalTeacher(KnownAlong):
    r"""Derivatives along given directions that arrive in the batch beside them.

    Pairs :math:`(v, J v)` of a linearized solver, :math:`(u, J^\top u)` of its adjoint, or, with
    ``order=2``, :math:`(v, H v)` of the Hessian of a scalar output: a column of it where v is a
    basis direction. The student's derivative along the same direction is compared, by the term that
    goes with it where none is chosen: ``side="tangent"``, ``side="cotangent"`` or ``order=2``; with
    both kinds of pairs there are two, named ``tangents`` and ``cotangents``. The ``projection`` and
    ``num_projections`` of a term are not used.

    A longer direction counts more, with its square. Where directions are drawn with
    :math:`E[v v^\top] = I` the expectation of the term is the comparison of the whole Jacobian or
    Hessian; basis directions of length 1 give the same divided by their number. NaN is not known
    and masked out. The derivatives belong to the batch's own inputs: a warning tells where the
    observed input is none of them.

    Cost: of a pair, that of one projection of the term. For graphs in one table (``groups=``)
    directions and derivatives in input space have a row for every node, those in output space one
    for every graph, and a pair is one of the whole graph.

    Args:
        tangents: Key path of the directions in input space: ``[batch, *in]``, or
            ``[batch, stored, *in]`` for several of each row.
        pushed: Key path of the derivatives along them, ``[batch, *out]`` or
            ``[batch, stored, *out]``; with ``order=2`` in the shape of the tangents.
        value: Key path of the value, for order-0 terms.
        cotangents: Key path of directions in output space, ``[batch, *out]`` or
            ``[batch, stored, *out]``.
        pulled: Key path of the rows :math:`J^\top u` that belong to them, ``[batch, *in]`` or
            ``[batch, stored, *in]``.
        order: 1 if ``pushed`` holds :math:`J v`, 2 if it holds :math:`H v`.
        per_step: How many of the stored pairs a step takes, at random and anew in each; None takes
            all. Of a row (or graph) that has fewer, padded with NaN, it takes known ones first.
        scale: What the stored derivatives are multiplied with to be those of the student's output:
            -1.0 where columns of the energy's Hessian teach a student that returns forces.
        stores_mapped: Whether values and derivatives are those of the output behind the spec's
            output map, which is refused otherwise.

    Raises:
        ValueError: If a direction comes without derivatives, or an argument is out of its range.

    Source:
        Products with the Hessian instead of all of it: Amin, Raja and Krishnapriyan 2025
        (arXiv:2501.09009); tangent and adjoint pairs: Tian 2024 (arXiv:2412.01013).
    """

    def __init__(
        self,
        tangents: str | int | None = None,
        pushed: str | int | None = None,
        value: str | int | None = None,
        *,
        cotangents: str | int | None = None,
        pulled: str | int | None = None,
        order: Literal[1, 2] = 1,
        per_step: int | None = None,
        scale: float = 1.0,
        stores_mapped: bool = False,
    ) -> None:
        super().__init__(value, stores_mapped=stores_mapped)
        paths = {
            "tangents": tangents, "pushed": pushed, "cotangents": cotangents, "pulled": pulled,
        }  # fmt: skip
        for name, of in _OF.items():
            require((paths[name] is None) == (paths[of] is None), of, f"given with {name}=",
                    paths[of])  # fmt: skip
        kinds = tuple(name for name in _OF if paths[name] is not None)
        require(bool(kinds), "tangents", "given, or cotangents", None)
        require(order in (1, 2), "order", "1 or 2", order)
        of_tangents = order == 1 or tangents is not None
        require(of_tangents, "order", "1 without tangents", order)
        is_count = isinstance(per_step, SupportsIndex) and per_step >= 1
        require(per_step is None or is_count, "per_step", "at least 1 or None", per_step)
        self.kinds, self.order = kinds, order
        self.default_term = _default_terms(kinds, order)
        self._paths = {k: None if p is None else _paths.parse(p, k) for k, p in paths.items()}
        self._per_step, self._scale = per_step, factor(scale)

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return directions of the query's batch, with the derivatives along them."""
        if term.order == 0:
            return None
        kind = self._kind_of(term)
        self._check(query)
        stored = self._pairs(kind, query).of_step(query, self._per_step, _SALTS[kind])
        target = stored.derivatives.transpose(0, 1) * self._scale
        # The student is derived along unknown ones all the same.
        given: InRows = stored.directions.nan_to_num(0.0, 0.0, 0.0).transpose(0, 1)
        if kind == "cotangents":
            return Directions(given, target=target)
        if term.order == 1:
            return Directions(tangents=given, target=target)
        count = 1 if term.num_projections is None else len(given)  # one with each of all tangents
        return Directions(given.new_ones(count, query.outputs), given, target=target)

    def _kind_of(self, term: SobolevTerm) -> str:
        is_pulled = term.order == 1 and term.side == "cotangent"
        kind = "cotangents" if is_pulled else "tangents"
        if kind not in self.kinds or not (is_pulled or term.order == self.order):
            terms = [self.default_term] if len(self.kinds) == 1 else self.default_term
            known = [f"order {t.order} with side={t.side!r}" for t in terms]
            raise ValueError(
                f"term {term.key!r} must be of {' or '.join(known)}, of which {_NAME} has "
                f"derivatives, got order {term.order} with side={term.side!r}"
            )
        return kind

    def _pairs(self, kind: str, query: Query) -> Pairs:
        of, of_tangents = _OF[kind], kind == "tangents"
        in_both = (of_tangents, not of_tangents or self.order == 2)
        rows = [Rows.of_input(query) if it else Rows.of_output(query) for it in in_both]
        given, found = (
            cast(Tensor, lookup(name, self._paths[name], query, _NAME, own))
            for name, own in zip((kind, of), rows, strict=True)
        )
        of_input, name = (given, kind) if of_tangents else (found, of)
        is_single = of_input.shape == query.x.shape
        if is_single:
            given, found = given[:, None], found[:, None]
        _check_shapes(query.x, name, given if of_tangents else found)
        if in_both == (True, True):
            _check_shapes(query.x, of, found)
        if found.ndim < 2 or given.ndim < 2 or found.shape[1] != given.shape[1]:
            raise ValueError(
                f"{of} must have one derivative for each of {given.shape[1:2].numel()} {kind}, "
                f"got {list(found.shape)}"
            )
        return Pairs(given, found, query.groups, in_both)


class AdjointTeacher(DirectionalTeacher):
    r"""Rows :math:`J^\top u` of an adjoint solver, beside their cotangents u in the batch.

    A :class:`DirectionalTeacher` without tangents, whose paths come in the adjoint's order. Maths,
    cost, shapes and ``groups`` are as there.

    Args:
        cotangents: Key path of the directions in output space, ``[batch, *out]`` or
            ``[batch, stored, *out]``.
        pulled: Key path of :math:`J^\top u`, ``[batch, *in]`` or ``[batch, stored, *in]``.
        value: Key path of the value, for order-0 terms.
        per_step: How many of the stored pairs a step takes; None takes all.
        scale: What the stored derivatives are multiplied with to be those of the student's output.
        stores_mapped: Whether they are those of the output behind the spec's output map.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        cotangents: str | int,
        pulled: str | int,
        value: str | int | None = None,
        *,
        per_step: int | None = None,
        scale: float = 1.0,
        stores_mapped: bool = False,
    ) -> None:
        super().__init__(
            value=value, cotangents=cotangents, pulled=pulled, per_step=per_step, scale=scale,
            stores_mapped=stores_mapped,
        )  # fmt: skip


def _default_terms(kinds: tuple[str, ...], order: int) -> SobolevTerm | list[SobolevTerm]:
    tangent = SobolevTerm(order=2) if order == 2 else SobolevTerm(side="tangent")
    own = {"tangents": tangent, "cotangents": SobolevTerm()}
    if len(kinds) == 1:
        return own[kinds[0]]
    return [replace(term, name=kind) for kind, term in own.items()]


def _check_shapes(x: Tensor, name: str, stored: Tensor) -> None:
    if stored.shape[:1] + stored.shape[2:] != x.shape:
        raise ValueError(
            f"{name} must have shape [batch, *in] or [batch, stored, *in] with *in = "
            f"{list(x.shape[1:])}, got {list(stored.shape)}"
        )
