"""Derivatives that are known along some directions alone."""

from typing import Any, cast

import torch
from torch import Tensor

from lightning_sobolev import _paths
from lightning_sobolev._types import BatchFn, InRows, Jet, OutRows, Points, Values
from lightning_sobolev.teachers.tabulated import lookup


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

    def drawn(self, term: Any, counter: int) -> InRows:
        """Return the tangents, for every step the same."""
        del counter
        if term.order != 1 or term.side != "tangent":
            raise ValueError(
                "directional derivatives serve terms of order 1 with side='tangent', got order "
                f"{term.order} and side={term.side!r}"
            )
        return self._tangents

    def jvp(self, tangents: InRows) -> OutRows:
        """Return the stored derivatives; the tangents are those of :meth:`drawn`."""
        del tangents
        return self._pushed

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Refuse: nothing is known of other directions."""
        del cotangents
        raise ValueError("directional derivatives have no cotangents; use side='tangent'")

    def hvp(self, cotangents: Tensor, tangents: Tensor) -> Tensor:
        """Refuse: nothing is known of second derivatives."""
        del cotangents, tangents
        raise ValueError("directional derivatives have no second order")


class DirectionalTeacher:
    r"""Derivatives :math:`J(x) v` along given directions that arrive in the batch beside them.

    A term of order 1 with ``side="tangent"`` compares the student's derivative along the same v.
    Its ``projection`` and ``num_projections`` are not used. A longer v counts more, with its
    square. NaN derivatives are not known and are masked out.

    Args:
        tangents: Key path of the directions: ``[batch, *in]``, or ``[batch, proj, *in]`` for
            several in each row.
        pushed: Key path of the derivatives: ``[batch, *out]`` or ``[batch, proj, *out]``.
        value: Key path of the value, for order-0 terms.
    """

    allows_unknown = True
    has_directions = True

    def __init__(
        self, tangents: str | int, pushed: str | int, value: str | int | None = None
    ) -> None:
        paths = {"tangents": tangents, "pushed": pushed, "value": value}
        self._paths = {k: None if p is None else _paths.parse(p) for k, p in paths.items()}

    def at(self, x: Points, on: BatchFn, batch: Any = None) -> Jet:
        """Return the jet stored in ``batch``."""
        del on
        if batch is None:
            raise ValueError("DirectionalTeacher needs the batch, but training_step was given none")
        name = "DirectionalTeacher"
        arrays = {k: lookup(k, path, x, batch, name) for k, path in self._paths.items()}
        tangents, pushed = cast(Tensor, arrays["tangents"]), cast(Tensor, arrays["pushed"])
        given = list(tangents.shape)
        if tangents.shape == x.shape:
            tangents, pushed = tangents[:, None], pushed[:, None]
        if tangents.shape[:1] + tangents.shape[2:] != x.shape or tangents.ndim != x.ndim + 1:
            raise ValueError(
                f"tangents must have shape [batch, *in] or [batch, proj, *in] with *in = "
                f"{list(x.shape[1:])}, got {given}"
            )
        if pushed.shape[:2] != tangents.shape[:2]:
            raise ValueError(
                f"pushed must have one derivative for each of {tangents.shape[1]} tangents, "
                f"got {list(pushed.shape)}"
            )
        unknown = tangents.reshape(*tangents.shape[:2], -1).isnan().any(-1)
        mask = unknown.reshape(*unknown.shape, *[1] * (pushed.ndim - 2))
        pushed = pushed.masked_fill(mask, torch.nan)
        tangents = tangents.nan_to_num(nan=0.0)  # the student is pushed along them all the same
        return PushedJet(tangents.transpose(0, 1), pushed.transpose(0, 1), arrays["value"])
