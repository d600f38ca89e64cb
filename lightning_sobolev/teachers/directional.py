"""Derivatives that are known along some directions alone."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import Directions, InRows, Jet, OutRows, Query, Teacher, Values
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.arrays import BatchCheck, Rows, lookup

_NAME = "DirectionalTeacher"


class PushedJet:
    """A jet known along its own tangents (NaN: not even there), in the place of drawn ones."""

    def __init__(self, tangents: InRows, pushed: OutRows, value: Tensor | None = None) -> None:
        self._tangents, self._pushed, self._value = tangents, pushed, value

    @property
    def value(self) -> Values:
        """The tabulated value."""
        if self._value is None:
            raise ValueError("an order-0 term needs value=..., but the batch gives none")
        return self._value

    def jvp(self, tangents: InRows) -> OutRows:
        """Return the stored derivatives along the teacher's own tangents."""
        if tangents.shape != self._tangents.shape:
            raise ValueError(
                "tangents must be the teacher's own, of shape "
                f"{list(self._tangents.shape)}, got {list(tangents.shape)}"
            )
        return self._pushed

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Refuse: nothing is known of other directions."""
        del cotangents
        raise ValueError("directional derivatives have no cotangents; use side='tangent'")

    def hvp(self, cotangents: Tensor, tangents: Tensor) -> Tensor:
        """Refuse: nothing is known of second derivatives."""
        del cotangents, tangents
        raise ValueError("directional derivatives have no second order")


class DirectionalTeacher(Teacher):
    r"""Derivatives :math:`J(x) v` along given directions that arrive in the batch beside them.

    A term of order 1 with ``side="tangent"``, the default, compares the student's derivative along
    the same v. Its ``projection`` and ``num_projections`` are not used. A longer v counts more,
    with its square. NaN derivatives are not known and are masked out. They belong to the batch's
    own inputs: a warning tells where the observed input is none of them.

    Args:
        tangents: Key path of the directions: ``[batch, *in]``, or ``[batch, proj, *in]`` for
            several in each row.
        pushed: Key path of the derivatives: ``[batch, *out]`` or ``[batch, proj, *out]``.
        value: Key path of the value, for order-0 terms.
        stores_mapped: Whether values and derivatives are those of the output behind the spec's
            output map, which is refused otherwise.
    """

    allows_unknown = True
    default_term = SobolevTerm(side="tangent")

    def __init__(
        self,
        tangents: str | int,
        pushed: str | int,
        value: str | int | None = None,
        *,
        stores_mapped: bool = False,
    ) -> None:
        paths = {"tangents": tangents, "pushed": pushed, "value": value}
        self._paths = {k: None if p is None else _paths.parse(p) for k, p in paths.items()}
        self._check = BatchCheck(_NAME, stores_mapped=stores_mapped)

    def at(self, query: Query) -> Jet:
        """Return the jet stored in the query's batch."""
        tangents, is_single = self._tangents(query)
        outputs = Rows.of_output(query)
        pushed = cast(Tensor, lookup("pushed", self._paths["pushed"], query, _NAME, outputs))
        pushed = pushed[:, None] if is_single else pushed
        if pushed.shape[1] != tangents.shape[1]:
            raise ValueError(
                f"pushed must have one derivative for each of {tangents.shape[1]} tangents, "
                f"got {list(pushed.shape)}"
            )
        unknown = tangents.reshape(*tangents.shape[:2], -1).isnan().any(-1)
        if query.groups is not None and not query.groups.per_row:  # of a graph, if one row is
            unknown = query.groups.summed(unknown.T.float()).T > 0
        mask = unknown.reshape(*unknown.shape, *[1] * (pushed.ndim - 2))
        pushed = pushed.masked_fill(mask, torch.nan)
        value = lookup("value", self._paths["value"], query, _NAME, outputs)
        return PushedJet(tangents.transpose(0, 1), pushed.transpose(0, 1), value)

    def directions(self, query: Query, term: SobolevTerm) -> Directions | None:
        """Return the tangents in the query's batch, for every step the same."""
        if term.order == 0:
            return None
        if term.order != 1 or term.side != "tangent":
            raise ValueError(
                "directional derivatives serve terms of order 1 with side='tangent', got order "
                f"{term.order} and side={term.side!r}"
            )
        # The student is pushed along unknown ones all the same.
        return Directions(tangents=self._tangents(query)[0].nan_to_num(nan=0.0).transpose(0, 1))

    def _tangents(self, query: Query) -> tuple[Float[Tensor, "batch proj *in"], bool]:
        """Return the stored tangents and whether each row has one alone."""
        self._check(query)
        given = cast(Tensor, lookup("tangents", self._paths["tangents"], query, _NAME))
        shape, is_single = query.x.shape, given.shape == query.x.shape
        tangents = given[:, None] if is_single else given
        if tangents.shape[:1] + tangents.shape[2:] != shape:
            raise ValueError(
                f"tangents must have shape [batch, *in] or [batch, proj, *in] with *in = "
                f"{list(shape[1:])}, got {list(given.shape)}"
            )
        return tangents, is_single
