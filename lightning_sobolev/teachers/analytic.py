"""A closed form as the target function."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_sobolev._types import Jet, Query, Teacher, identity
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.teachers.tabulated import TabulatedJet


class AnalyticTeacher(Teacher):
    """A target known in closed form.

    With ``gradient`` (and ``hessian``) the derivatives are those given; without, ``value`` must be
    written in torch operations and is differentiated.

    Args:
        value: ``[batch, *in] -> [batch, *out]``.
        gradient: ``[batch, *in] -> [batch, *out, *in]``, or None to differentiate ``value``.
        hessian: ``[batch, *in] -> [batch, *out, *in, *in]``, for order 2 beside ``gradient``.

    Raises:
        ValueError: If ``hessian`` is given without ``gradient``.
    """

    def __init__(
        self,
        value: Callable[[Tensor], Tensor],
        gradient: Callable[[Tensor], Tensor] | None = None,
        hessian: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if hessian is not None and gradient is None:
            raise ValueError("hessian needs gradient beside it, got gradient=None")
        self._value, self._gradient, self._hessian = value, gradient, hessian

    def at(self, query: Query) -> Jet:
        """Return the closed form's jet at the query's points."""
        x, on = query.x, query.on
        if self._gradient is None:
            return tape_jet(lambda point: on(self._value(point)), x)
        if on is not identity:
            raise ValueError(
                "closed-form derivatives are those of the output: on must be 'identity'"
            )
        with torch.no_grad():
            point = x.detach()
            value, jacobian = self._value(point), self._gradient(point)
            hessian = None if self._hessian is None else self._hessian(point)
        return TabulatedJet(
            x.shape[1:], value=value, jacobian=jacobian, hessian=hessian, source="AnalyticTeacher",
            groups=query.groups,
        )  # fmt: skip
