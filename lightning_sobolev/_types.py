"""Words that every part of the package shares.

A *jet* is the local Taylor data of a function at given points: its value and the projections of
its derivatives with respect to the input. A student and a teacher that answer as jets can be
compared without either knowing how the other one differentiates.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "batch *in"]
Values = Float[Tensor, "batch *out"]
InRows = Float[Tensor, "proj batch *in"]
OutRows = Float[Tensor, "proj batch *out"]

BatchFn = Callable[[Tensor], Tensor]
"""Maps ``[batch, *in]`` to ``[batch, *out]``; row b of the result depends on row b alone."""


@runtime_checkable
class Jet(Protocol):
    """Value and projected derivatives of one function at one batch of points."""

    @property
    def value(self) -> Values:
        """The function's value."""
        ...

    def vjp(self, cotangents: OutRows) -> InRows:
        r"""Pull cotangents back: row :math:`(p, b)` is :math:`u_{pb}^\top J(x_b)`."""
        ...

    def jvp(self, tangents: InRows) -> OutRows:
        r"""Push tangents forward: row :math:`(p, b)` is :math:`J(x_b) v_{pb}`."""
        ...

    def hvp(self, cotangents: OutRows, tangents: InRows) -> InRows:
        r"""Apply the Hessian of :math:`\langle u_{pb}, f \rangle` at :math:`x_b` to v."""
        ...


@runtime_checkable
class DrawnJet(Jet, Protocol):
    """A jet that knows its derivatives along directions of its own alone."""

    def drawn(self, term: Any, counter: int) -> Float[Tensor, "proj batch *rest"]:
        """Return the directions for step number ``counter``."""
        ...


@runtime_checkable
class Teacher(Protocol):
    """Answers at any points with the target's jet.

    Two more attributes are looked up and need not be there: ``takes = "call"`` asks for a keyword
    argument ``call`` of :meth:`at`, which calls a network as the student was called;
    ``has_directions = True`` says that jets are a :class:`DrawnJet`, of which the directions are
    asked before the student runs.
    """

    allows_unknown: bool
    """Whether NaN in an answer means "not known" (masked out) rather than an error."""

    def at(self, x: Points, on: BatchFn, batch: Any = None) -> Jet:
        """Return the jet of ``on(target)`` at ``x``, without a graph to the student."""
        ...
