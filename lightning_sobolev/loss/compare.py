r"""From two jets to distances, :math:`\ell(\mathrm{proj}_p D m(x_b), \mathrm{proj}_p D f(x_b))`.

No number is looked at, so it compiles whole; ``loss/reduce.py`` makes a term of it.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sobolev._types import Directions, Jet
from lightning_sobolev.functional.band_limits import low_pass, space_axes
from lightning_sobolev.functional.derivatives import all_pairs, fitted, without_ones
from lightning_sobolev.functional.discrepancies import DISCREPANCIES
from lightning_sobolev.spec import SobolevTerm


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What the rows of one input count: the term is the sum of such weighted means.

    Args:
        rows: Which rows of the comparison these are.
        factor: What the distance of each is multiplied with.
        count: What each adds to the number that the sum is divided by.
        block: Number of the input.
    """

    rows: slice
    factor: Float[Tensor, " rows"]
    count: Float[Tensor, " rows"]
    block: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """One term before reduction, by projection and row; ``distance`` also by element where asked.

    ``reference`` is the distance of the target from zero, ``known`` says which pairs have any known
    target entry, ``vanishes`` whether the student's side of an order-2 term is zero everywhere;
    ``shares`` say what rows count where they belong to groups;
    ``skipped`` counts rows whose target is not finite, ``total`` sums what is known of the target
    where no ``reference`` shows that it is finite.
    """

    distance: Float[Tensor, "proj batch ..."]
    reference: Float[Tensor, "proj batch ..."] | None
    known: Bool[Tensor, "proj batch"] | None = None
    vanishes: Bool[Tensor, ""] | None = None
    skipped: Tensor | None = None
    total: Float[Tensor, ""] | None = None
    shares: list[Share] | None = None


@dataclass(frozen=True, slots=True)
class Gaps:
    """What may be missing in a target: NaN as "not known", and rows that are left out."""

    allows_unknown: bool = False
    non_finite: Literal["raise", "skip"] = "raise"


def project(
    term: SobolevTerm, jet: Jet, directions: Directions, at_once: int = 1
) -> Float[Tensor, "proj batch ..."]:
    """Ask a jet for what a term compares: its value as one projection, or a derivative."""
    cotangents, tangents = directions.cotangents, directions.tangents
    # the package's own jets alone take several at once
    how: Any = {} if at_once == 1 else {"at_once": at_once}
    if term.order == 0:
        return jet.value.unsqueeze(0)
    if tangents is None:
        assert cotangents is not None
        return jet.vjp(cotangents, **how)
    if cotangents is None:
        return jet.jvp(tangents, **how)
    if term.num_projections is None:
        return all_pairs(functools.partial(jet.hvp, **how), cotangents, tangents)
    return jet.hvp(cotangents, tangents, **how)


def project_target(
    term: SobolevTerm, target: Jet, directions: Directions, out_shape: Sequence[int],
    at_once: int = 1,
) -> Float[Tensor, "proj batch ..."]:  # fmt: skip
    """Ask a teacher for what a term compares; ``out_shape`` is that of the student's output."""
    if directions.target is not None:
        return directions.target
    if directions.cotangents is not None:
        directions = directions._replace(cotangents=fitted(directions.cotangents, target))
    try:
        return project(term, target, directions, at_once)
    except ValueError as error:
        raise ValueError(
            f"term {term.key!r}: the teacher must answer for a student whose output is "
            f"{list(out_shape[1:])}, got: {error}"
        ) from error


def evaluate(
    term: SobolevTerm, student: Jet, target: Jet, directions: Directions, gaps: Gaps | None = None
) -> Comparison:
    """Return the distances of one projected derivative of two jets, by projection and row.

    Raises:
        ValueError: If the shapes of student and target differ, or the target is not finite.
    """
    gaps = Gaps() if gaps is None else gaps
    rows = project_target(term, target, directions, student.value.shape)
    ours = project(term, student, directions)
    ours = ours if directions.read is None else directions.read(ours)
    comparison = compare(term, ours, rows, gaps)
    if gaps.non_finite == "raise":
        check_target(term, math.nan, rows, gaps.allows_unknown)
    return comparison


def compare(
    term: SobolevTerm,
    student: Float[Tensor, "proj batch ..."],
    target: Float[Tensor, "proj batch ..."],
    gaps: Gaps,
) -> Comparison:
    """Compare projected derivatives; looks at no number."""
    target = target if student.shape == target.shape else _aligned(term, student, target)
    target = target.detach() if target.requires_grad else target
    if student.dtype.itemsize < 4:  # squares of half-precision rows overflow and underflow
        student = student.float()
    if target.dtype.itemsize < 4:
        target = target.float()
    known, skipped = (~target.isnan() if gaps.allows_unknown else None), None
    if gaps.non_finite == "skip":
        known, skipped = _finite_rows(target, known)
    pairs = None
    if known is not None:
        known = _whole_rows(known) if _is_filtered(term) else known
        pairs = known.flatten(2).any(-1) if known.ndim > 2 else known
        target = torch.where(known, target, 0.0)
        # where() before the distance keeps the gradient of unknown entries exactly zero.
        student = torch.where(known, student, 0.0)
    # A finite sum is one pass over the numbers; only one that is not needs a second look. A scale
    # is one already, but for one that does not grow with its target.
    is_scaled = term.normalize != "none" and term.discrepancy != "cosine"
    total = None if is_scaled and gaps.non_finite == "raise" else target.sum()
    if term.band is not None and _is_filtered(term):
        student, target = (_filtered(term, rows) for rows in (student, target))
    vanishes = _vanishes(student, known) if term.order == 2 else None
    distance, reference = _distances(term, student, target)
    return Comparison(distance, reference, pairs, vanishes, skipped, total)


def _distances(term: SobolevTerm, student: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
    is_scaled, distance = term.normalize != "none", DISCREPANCIES[term.discrepancy]
    if term.normalize == "elements":  # an unknown element is zero on both sides
        shape = (*student.shape[:2], student.shape[2:].numel())
        return (student - target).square().reshape(shape), target.square().reshape(shape)
    if term.discrepancy == "squared":  # at every step of most trainings: no detour
        axes = tuple(range(2, target.ndim))
        errors, squares = (student - target).square(), target.square() if is_scaled else None
        if not axes:
            return errors, squares
        return errors.sum(axes), None if squares is None else squares.sum(axes)
    reference = distance(torch.zeros_like(target), target) if is_scaled else None
    return distance(student, target), reference


def check_target(
    term: SobolevTerm, total: float, target: Tensor | None, allows_unknown: bool
) -> None:
    """Refuse a teacher's answer that holds NaN or Inf; it may be gone by then, but for its sum."""
    if math.isfinite(total):
        return
    where = "some rows"
    if target is not None:
        known = ~target.isnan() if allows_unknown else None
        count = int(_finite_rows(target, known)[1])
        if not count:  # finite numbers whose sum is too large
            return
        where = f"{count} of {target.shape[1]} rows"
    raise ValueError(
        f"the teacher's answer for term {term.key!r} must be finite, got NaN or Inf in {where}; "
        "non_finite='skip' leaves such rows out"
    )


def _whole_rows(known: Bool[Tensor, "proj batch *in"]) -> Bool[Tensor, "proj batch *in"]:
    # Each number of a filtered row needs all others.
    whole = known.flatten(2).all(-1).reshape(*known.shape[:2], *[1] * (known.ndim - 2))
    return whole.expand_as(known)


def _vanishes(student: Tensor, known: Tensor | None) -> Bool[Tensor, ""]:
    is_zero = ~student.detach().any()
    return is_zero if known is None else is_zero & known.any()


def _is_filtered(term: SobolevTerm) -> bool:
    return term.band is not None and term.needs_cotangents


def _filtered(term: SobolevTerm, rows: Float[Tensor, "proj batch *in"]) -> Tensor:
    assert term.band is not None
    return low_pass(rows, term.band, space_axes(rows.shape[2:], term.band, f"term {term.key!r}"))


def _finite_rows(
    target: Float[Tensor, "proj batch *d"], known: Bool[Tensor, "proj batch *d"] | None
) -> tuple[Bool[Tensor, "proj batch *d"], Tensor]:
    seen = torch.ones_like(target, dtype=torch.bool) if known is None else known
    bad_rows = (seen & ~target.isfinite()).transpose(0, 1).flatten(1).any(1)
    return seen & ~bad_rows.reshape(1, -1, *[1] * (seen.ndim - 2)), bad_rows.sum()


def _aligned(term: SobolevTerm, student: Tensor, target: Tensor) -> Tensor:
    # Only axes of length one may differ: a [batch, 1] output against a [batch] target would
    # broadcast to [batch, batch].
    if student.shape == target.shape:
        return target
    if without_ones(student.shape[1:]) != without_ones(target.shape[1:]):
        raise ValueError(
            f"student and teacher must agree in shape for term {term.key!r}, got "
            f"{list(student.shape[1:])} from the student and {list(target.shape[1:])} from the "
            "teacher"
        )
    return target.reshape(student.shape)
