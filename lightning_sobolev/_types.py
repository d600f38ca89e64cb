"""Words that every part of the package shares.

A *jet* is the local Taylor data of a function at given points: its value and the projections of
its derivatives with respect to the input. A student and a teacher that answer as jets can be
compared without either knowing how the other one differentiates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev._groups import Groups

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


class Directions(NamedTuple):
    """What a term is projected on; None where it needs no such direction.

    ``read`` maps the student's projected rows linearly to what the target is known of (a reduced
    row, a trace), ``[proj, batch, *rest] -> [proj, batch, *known]``; None compares them whole.
    ``target`` is what a teacher that knows its own directions alone knows along them; None asks
    its jet.
    """

    cotangents: OutRows | None = None
    tangents: InRows | None = None
    read: Callable[[Tensor], Tensor] | None = None
    target: Tensor | None = None


@runtime_checkable
class StudentCall(Protocol):
    """How the student was called, for a teacher that is called alike."""

    @property
    def output(self) -> Sequence[str | int]:
        """Key path of the matched tensor in what the student returned; empty for a tensor."""
        ...

    @property
    def shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of a row of every observed input."""
        ...

    def accepts(self, network: nn.Module) -> bool:
        """Whether ``network`` takes every argument of the call under the same name."""
        ...

    def repeat(self, network: nn.Module, point: Tensor) -> Any:
        """Call ``network`` with the student's arguments, ``point`` in the observed input's place.

        Floating-point arguments are cast to the type of ``point``.
        """
        ...


def identity(y: Tensor) -> Tensor:
    """The output map that changes nothing."""
    return y


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """What a teacher is asked.

    Args:
        x: Where; without a graph to the student.
        on: Output map: the answer is the jet of ``on(target)``.
        batch: What ``training_step`` was given, whole.
        rows: Numbers of those rows of the batch that ``x`` holds; None for all.
        call: How the student was called; None where there is no student.
        step: Number of the evaluation, which stored directions are chosen by.
        alone: Whether ``x`` was the only argument of the call, given by position.
        groups: Which output row every row of ``x`` belongs to; None where row b belongs to row b.
        seed: What a teacher's own random choices are a function of (``generator_for(*seed)``): the
            seed of the loss, the process, the evaluation and the call.
    """

    x: Points
    on: BatchFn = identity
    batch: Any = None
    rows: Tensor | None = None
    call: StudentCall | None = None
    step: int = 0
    alone: bool = False
    groups: Groups | None = None
    seed: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of output rows."""
        return self.x.shape[0] if self.groups is None else self.groups.outputs


@runtime_checkable
class Teacher(Protocol):
    """Answers at any points with the target's jet. Derive from it to inherit the defaults."""

    allows_unknown: bool = False
    """Whether NaN in an answer means "not known" (masked out) rather than an error."""

    default_term: Any = None
    """The term, or terms, that are matched where none was chosen; None for one of order 1."""

    networks: Sequence[nn.Module] = ()
    """Networks that answer: they follow the student's device, and are not taken for the student."""

    @property
    def is_stored(self) -> bool:
        """Whether it answers at the inputs of the data alone, not anywhere."""
        return False

    def at(self, query: Query) -> Jet:
        """Return the jet of ``query.on(target)`` at ``query.x``, without a graph to the student."""
        ...

    def directions(self, query: Query, term: Any) -> Directions | None:
        """Return the only directions along which the target is known; None: draw them."""
        del query, term
        return None

    def check_apart(self, module: nn.Module, target: str | None) -> None:
        """Refuse a student, ``module`` or its part ``target``, that answers for itself."""
        del module, target
