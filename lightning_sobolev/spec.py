r"""What is matched and how strongly: frozen data, checked when it is built.

A :class:`SobolevTerm` is one summand of

.. math:: \sum_j w_j \, \mathbb{E}_v\, \ell_j(\mathrm{proj}_v D^j m(x), \mathrm{proj}_v D^j f(x))

(Czarnecki et al. 2017, objective with stochastic projections); a :class:`SobolevSpec` is the sum.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from lightning_sobolev.functional.covariance import Covariance
from lightning_sobolev.functional.discrepancies import DISCREPANCIES
from lightning_sobolev.functional.fisher import FISHER
from lightning_sobolev.functional.projections import PROJECTIONS

OUTPUT_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda y: y,
    "log_softmax": lambda y: torch.log_softmax(y, dim=-1),
    "softmax": lambda y: torch.softmax(y, dim=-1),
}


@runtime_checkable
class Schedule(Protocol):
    """A weight as a function of the global step."""

    def at(self, step: int) -> float: ...  # noqa: D102


def _require(condition: bool, name: str, expected: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {got!r}")


@dataclass(frozen=True, slots=True)
class Constant:
    """The same weight at every step."""

    value: float

    def __post_init__(self) -> None:
        _require(_is_weight(self.value), "value", "a finite number >= 0", self.value)

    def at(self, step: int) -> float:
        """Return ``value``."""
        del step
        return self.value


@dataclass(frozen=True, slots=True)
class _Ramp:
    """From ``start`` to ``end`` within ``steps`` steps, then ``end`` for good."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        _require(_is_weight(self.start), "start", "a finite number >= 0", self.start)
        _require(_is_weight(self.end), "end", "a finite number >= 0", self.end)
        _require(self.steps >= 1, "steps", "at least 1", self.steps)

    def _fraction(self, step: int) -> float:
        return min(max(step / self.steps, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Linear(_Ramp):
    """A straight line from ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        return self.start + (self.end - self.start) * self._fraction(step)


@dataclass(frozen=True, slots=True)
class Cosine(_Ramp):
    """Half a cosine from ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        share = 0.5 * (1.0 + math.cos(math.pi * self._fraction(step)))
        return self.end + (self.start - self.end) * share


@dataclass(frozen=True, slots=True)
class Step:
    """``values[i]`` from ``boundaries[i - 1]`` on; ``values[0]`` before the first boundary."""

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        # Lists from a YAML file would make the frozen object changeable and unhashable.
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        expected = "one longer than boundaries"
        _require(len(self.values) == len(self.boundaries) + 1, "values", expected, self.values)
        _require(all(map(_is_weight, self.values)), "values", "finite and >= 0", self.values)
        ordered = list(self.boundaries) == sorted(set(self.boundaries))
        _require(ordered, "boundaries", "strictly increasing", self.boundaries)

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


def _is_weight(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0


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
        num_projections: Directions a step; None takes every basis direction (exact matching).
        discrepancy: Distance of an example: squared, l1, huber or cosine.
        normalize: ``"target"`` divides by the running mean of the discrepancy between zero and
            the target (squared: the target's mean square): 1.0 is a student without derivative;
            ``"elements"`` takes each element of the row by itself; ``"none"`` is the paper's form.
        rows: Fraction of the batch on which the term is evaluated. Below 1 it is evaluated by a
            second forward of these rows, whose dropout masks are its own.
        every_n_steps: Evaluates the term in every n-th step alone, n times as heavy.
        name: Key in the log; ``order_1`` and so on when None.

    Raises:
        ValueError: If a field is out of its range; the text names field, expectation and value.
    """

    order: int = 1
    weight: float | Schedule = 1.0
    side: Literal["cotangent", "tangent"] = "cotangent"
    projection: str | Covariance = "sphere"
    num_projections: int | None = 1
    discrepancy: str = "squared"
    normalize: Literal["target", "elements", "none"] = "target"
    rows: float = 1.0
    every_n_steps: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        _require(self.order in (0, 1, 2), "order", "0, 1 or 2", self.order)
        weight_ok = _is_weight(self.weight) or isinstance(self.weight, Schedule)
        _require(weight_ok, "weight", "a finite number >= 0 or a schedule", self.weight)
        is_side = self.side in ("cotangent", "tangent")
        _require(is_side, "side", "'cotangent' or 'tangent'", self.side)
        law, laws = self.projection, (*PROJECTIONS, FISHER)
        known_law = law in laws or (isinstance(law, Covariance) and self.order == 1)
        _require(known_law, "projection", f"one of {laws}, or a Covariance for order 1", law)
        counts = (count := self.num_projections) is None or (isinstance(count, int) and count >= 1)
        _require(counts, "num_projections", "at least 1 or None", count)
        exact = count is not None or law == "basis"
        _require(exact, "projection", "'basis' when num_projections is None", law)
        fits = law != FISHER or (self.order == 1 and self.side == "cotangent")
        _require(fits, "projection", "'fisher' with order 1 and cotangents only", law)
        known = tuple(DISCREPANCIES)
        _require(self.discrepancy in known, "discrepancy", f"one of {known}", self.discrepancy)
        scale, scales = self.normalize, ("target", "elements", "none")
        _require(scale in scales, "normalize", f"one of {scales}", scale)
        fits = scale != "elements" or self.discrepancy == "squared"
        _require(fits, "discrepancy", "'squared' with normalize='elements'", self.discrepancy)
        rows_ok = isinstance(self.rows, int | float) and 0.0 < self.rows <= 1.0
        _require(rows_ok, "rows", "in (0, 1]", self.rows)
        _require(self.every_n_steps >= 1, "every_n_steps", "at least 1", self.every_n_steps)
        # The sum of all terms is logged beside them under this name.
        _require(self.name not in ("", "total"), "name", "a word other than 'total'", self.name)

    @property
    def key(self) -> str:
        """Name of the term in logs and checkpoints."""
        return self.name if self.name is not None else f"order_{self.order}"

    @property
    def needs_cotangents(self) -> bool:
        """Whether directions in output space are drawn."""
        return self.order == 2 or (self.order == 1 and self.side == "cotangent")

    @property
    def needs_tangents(self) -> bool:
        """Whether directions in input space are drawn."""
        return self.order == 2 or (self.order == 1 and self.side == "tangent")

    def weight_at(self, step: int) -> float:
        """Return the weight at a global step; 0 where ``every_n_steps`` leaves the term out.

        Raises:
            ValueError: If a schedule answers with something else than a finite number >= 0.
        """
        given = self.weight
        weight = given if isinstance(given, int | float) else given.at(step)
        _require(_is_weight(weight), f"weight of {self.key} at step {step}", "finite, >= 0", weight)
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
        _require(len(self.terms) > 0, "terms", "at least one SobolevTerm", self.terms)
        for term in self.terms:
            _require(isinstance(term, SobolevTerm), "terms", "SobolevTerm objects", term)
        keys = [term.key for term in self.terms]
        _require(len(set(keys)) == len(keys), "terms", "named differently (set name=...)", keys)
        fits = self.on == "log_softmax" or all(t.projection != FISHER for t in self.terms)
        _require(fits, "on", "'log_softmax' for a fisher projection", self.on)
        known = callable(self.on) or self.on in OUTPUT_MAPS
        _require(known, "on", f"one of {tuple(OUTPUT_MAPS)} or a callable", self.on)

    @property
    def output_map(self) -> Callable[[Any], Any]:
        """The output map as a function."""
        return OUTPUT_MAPS[self.on] if isinstance(self.on, str) else self.on

    @property
    def max_order(self) -> int:
        """The highest order among the terms."""
        return max(term.order for term in self.terms)
