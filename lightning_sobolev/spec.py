r"""What is matched and how strongly: frozen data, checked when it is built.

A :class:`SobolevTerm` is one summand of

.. math:: \sum_j w_j \, \mathbb{E}_v\, \ell_j(\mathrm{proj}_v D^j m(x), \mathrm{proj}_v D^j f(x))

(Czarnecki et al. 2017, objective with stochastic projections); a :class:`SobolevSpec` is the sum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._types import identity
from lightning_sobolev.functional.band_limits import check_rate
from lightning_sobolev.functional.covariance import Covariance
from lightning_sobolev.functional.discrepancies import DISCREPANCIES
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.functional.projections import PROJECTIONS
from lightning_sobolev.points import Points, PointsFn
from lightning_sobolev.schedules import Cosine, Linear, Schedule, Step, is_weight

__all__ = ["OUTPUT_MAPS", "Cosine", "Linear", "Schedule", "SobolevSpec", "SobolevTerm", "Step"]


def _log_softmax(y: Tensor) -> Tensor:
    return torch.log_softmax(y, dim=-1)


def _softmax(y: Tensor) -> Tensor:
    return torch.softmax(y, dim=-1)


OUTPUT_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": identity,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SobolevTerm:
    r"""One derivative (or value) that the student shall match.

    Cost beside the plain step, for one projection: order 1 about one backward pass of the teacher
    and three of the student's; order 2 about twice that. ``num_projections`` multiplies it.

    Args:
        order: 0 matches the value, 1 the Jacobian, 2 the Hessian of a projected output.
        weight: Factor of the term, a schedule of it over the global step, or ``Balanced``. It means
            the same for every projection, number of projections and batch size.
        side: For order 1: ``"cotangent"`` matches :math:`u^\top J` with ``u`` in output space (one
            backward pass), ``"tangent"`` matches :math:`J v` with ``v`` in input space. Order 2
            always draws both and matches :math:`\nabla^2 \langle u, f \rangle v`.
        projection: Law of the directions: sphere, gaussian, rademacher or basis; ``"fisher"`` for
            log-probabilities, each weighed by the target's own; or, for order 1, a ``Covariance``.
        band: Percentage of the frequencies of the input's axes of space (all behind the channels)
            that is cut from the derivatives of both before they are compared: tangents, and rows
            in input space, are low-pass filtered. The term then matches :math:`J P` (order 2:
            :math:`P \nabla^2 P`), with P the projection on the frequencies that are left. A row of
            which an entry is not known is not known. None compares all there is.
        num_projections: Directions a step; None takes every basis direction (exact matching).
        discrepancy: Distance of an example: squared, l1, huber or cosine; or product, for a number
            that every projection estimates (:class:`~lightning_sobolev.TraceTeacher`).
        normalize: ``"target"`` divides by the running mean of the discrepancy between zero and
            the target (squared: the target's mean square): 1.0 is a student without derivative;
            ``"elements"`` takes each element of the row by itself; ``"none"`` is the paper's form.
        rows: Fraction of the batch on which the term is evaluated. Below 1 it is evaluated by a
            second forward of these rows, whose dropout masks are its own.
        average: What the term is the mean over where rows are the nodes of graphs (``groups=``):
            ``"node"``, so that a large graph counts more than a small one, or ``"graph"``, which
            takes the mean over the nodes of each graph first. The weight means the same for graphs
            of any size in both.
        every_n_steps: Evaluates the term in every n-th step alone, n times as heavy.
        points: Where student and teacher are compared: None for the observed input, or what is made
            of it in every step: :class:`~lightning_sobolev.Recombine`, ``Mixup``, ``Shift``,
            ``Noise``, or a function ``(x, generator) -> x'``. It takes a teacher that can be asked
            anywhere, and a second forward of the student; terms of equal ``points`` and ``rows``
            share both.
        name: Key in the log; ``order_1`` and so on when None.

    Raises:
        ValueError: If a field is out of its range; the text names field, expectation and value.
    """

    order: int = 1
    weight: float | Schedule = 1.0
    side: Literal["cotangent", "tangent"] = "cotangent"
    projection: str | Covariance = "sphere"
    band: float | None = None
    num_projections: int | None = 1
    discrepancy: str = "squared"
    normalize: Literal["target", "elements", "none"] = "target"
    rows: float = 1.0
    average: Literal["node", "graph"] = "node"
    every_n_steps: int = 1
    points: Points | PointsFn | None = None
    name: str | None = None

    # Set once: they are asked for at every step.
    key: str = field(init=False, repr=False, compare=False)
    """Name of the term in logs and checkpoints."""
    needs_cotangents: bool = field(init=False, repr=False, compare=False)
    """Whether directions in output space are drawn."""
    needs_tangents: bool = field(init=False, repr=False, compare=False)
    """Whether directions in input space are drawn."""

    def __post_init__(self) -> None:
        require(self.order in (0, 1, 2), "order", "0, 1 or 2", self.order)
        weight_ok = is_weight(self.weight) or isinstance(self.weight, Schedule)
        require(weight_ok, "weight", "a finite number >= 0 or a schedule", self.weight)
        is_side = self.side in ("cotangent", "tangent")
        require(is_side, "side", "'cotangent' or 'tangent'", self.side)
        self._check_directions()
        self._check_distance()
        rows_ok = isinstance(self.rows, int | float) and 0.0 < self.rows <= 1.0
        require(rows_ok, "rows", "in (0, 1]", self.rows)
        require(self.average in ("node", "graph"), "average", "'node' or 'graph'", self.average)
        require(self.every_n_steps >= 1, "every_n_steps", "at least 1", self.every_n_steps)
        makes = self.points is None or isinstance(self.points, Points) or callable(self.points)
        require(makes, "points", "None, a kind of points or a function", self.points)
        # The sum of all terms is logged beside them under this name.
        require(self.name not in ("", "total"), "name", "a word other than 'total'", self.name)
        is_second, side = self.order == 2, self.side
        found = {
            "key": f"order_{self.order}" if self.name is None else self.name,
            "needs_cotangents": is_second or (self.order == 1 and side == "cotangent"),
            "needs_tangents": is_second or (self.order == 1 and side == "tangent"),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def _check_directions(self) -> None:
        law, laws = self.projection, (*PROJECTIONS, FISHER)
        known_law = law in laws or (isinstance(law, Covariance) and self.order == 1)
        require(known_law, "projection", f"one of {laws}, or a Covariance for order 1", law)
        counts = (count := self.num_projections) is None or (isinstance(count, int) and count >= 1)
        require(counts, "num_projections", "at least 1 or None", count)
        exact = count is not None or law == "basis"
        require(exact, "projection", "'basis' when num_projections is None", law)
        fits = law != FISHER or (self.order == 1 and self.side == "cotangent")
        require(fits, "projection", "'fisher' with order 1 and cotangents only", law)
        if self.band is not None:
            check_rate(self.band, "band")
            require(self.order > 0, "band", "None with order 0, which has no derivative", self.band)

    def _check_distance(self) -> None:
        known = tuple(DISCREPANCIES)
        require(self.discrepancy in known, "discrepancy", f"one of {known}", self.discrepancy)
        count = self.num_projections
        several = self.discrepancy != "product" or (count is not None and count >= 2)
        require(several, "num_projections", "at least 2 with discrepancy='product'", count)
        scale, scales = self.normalize, ("target", "elements", "none")
        require(scale in scales, "normalize", f"one of {scales}", scale)
        fits = scale != "elements" or self.discrepancy == "squared"
        require(fits, "discrepancy", "'squared' with normalize='elements'", self.discrepancy)

    def weight_at(self, step: int) -> float:
        """Return the weight at a global step; 0 where ``every_n_steps`` leaves the term out."""
        given = self.weight
        weight = given if isinstance(given, int | float) else given.at(step)
        require(is_weight(weight), f"weight of {self.key} at step {step}", "finite, >= 0", weight)
        return 0.0 if step % self.every_n_steps else float(weight) * self.every_n_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SobolevSpec:
    """The terms of a Sobolev objective and the function of the output they look at.

    Args:
        terms: The terms; their keys must differ.
        on: Output map applied to student and teacher alike: ``identity``, ``log_softmax`` and
            ``softmax`` over the last axis, or a function ``[batch, *out] -> [batch, *out2]``.

    Raises:
        ValueError: If there is no term, two terms share a key, or ``on`` is unknown.
    """

    terms: Sequence[SobolevTerm] = (SobolevTerm(),)
    on: str | Callable[[Tensor], Tensor] = "identity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        require(len(self.terms) > 0, "terms", "at least one SobolevTerm", self.terms)
        for term in self.terms:
            require(isinstance(term, SobolevTerm), "terms", "SobolevTerm objects", term)
        keys = [term.key for term in self.terms]
        require(len(set(keys)) == len(keys), "terms", "named differently (set name=...)", keys)
        fits = self.on == "log_softmax" or all(t.projection != FISHER for t in self.terms)
        require(fits, "on", "'log_softmax' for a fisher projection", self.on)
        known = callable(self.on) or self.on in OUTPUT_MAPS
        require(known, "on", f"one of {tuple(OUTPUT_MAPS)} or a callable", self.on)

    @property
    def output_map(self) -> Callable[[Any], Any]:
        """The output map as a function."""
        return OUTPUT_MAPS[self.on] if isinstance(self.on, str) else self.on

    @property
    def max_order(self) -> int:
        """The highest order among the terms."""
        return max(term.order for term in self.terms)
