r"""From two jets to named terms: what is matched, divided by its scale, reduced once.

.. math:: \text{term}_j = \frac{1}{s_j\,|R|} \sum_{(p, b) \in R}
    \ell_j\big(\mathrm{proj}_p D^j m(x_b),\ \mathrm{proj}_p D^j f(x_b)\big)

``R`` are the (projection, row) pairs with any known target entry and :math:`s_j` the running mean
of :math:`\ell_j(0, \cdot)`, or 1. The module is usable without a Trainer (Fabric, a plain loop).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sobolev._types import Jet
from lightning_sobolev.functional.derivatives import TapeJet
from lightning_sobolev.functional.discrepancies import DISCREPANCIES
from lightning_sobolev.scales import RunningScales, by_element
from lightning_sobolev.spec import SobolevTerm

__all__ = ["Matched", "RunningScales", "match", "projected", "reduced", "weighted_sum"]


@dataclass(frozen=True, slots=True)
class Matched:
    """One term before reduction.

    Args:
        distance: Discrepancy between student and target; of every element by itself where each has
            its own scale.
        reference: Discrepancy between zero and the target; None where no scale is taken.
        known: Which (projection, row) pairs have any known target entry; None for all of them.
        vanishes: Whether the student's side of an order-2 term is exactly zero everywhere.
        skipped: Rows that were left out because the target is not finite there.
    """

    distance: Float[Tensor, "proj batch ..."]
    reference: Float[Tensor, "proj batch ..."] | None
    known: Bool[Tensor, "proj batch"] | None = None
    vanishes: bool = False
    skipped: int = 0


def match(
    term: SobolevTerm,
    student: Jet,
    target: Jet,
    *,
    cotangents: Tensor | None = None,
    tangents: Tensor | None = None,
    allows_unknown: bool = False,
    non_finite: Literal["raise", "skip"] = "raise",
) -> Matched:
    """Compare one projected derivative of two jets.

    Args:
        term: What is compared and by which discrepancy.
        student: Jet that carries a graph to the student's parameters.
        target: Jet of the teacher.
        cotangents: ``[proj, batch, *out]`` where the term needs them.
        tangents: ``[proj, batch, *in]`` where the term needs them.
        allows_unknown: Whether NaN in the target masks the entry instead of being an error.
        non_finite: What happens to a row whose target is NaN or Inf: an error, or it is left out.

    Returns:
        Distances that still have their projection and batch axes.

    Raises:
        ValueError: If the shapes of student and target differ, or the target is not finite.
    """
    ours = _at_least_single(projected(term, student, cotangents, tangents))
    theirs = _aligned(term, ours, _answer(term, student, target, cotangents, tangents)).detach()
    theirs = _at_least_single(theirs)
    known, skipped = (~theirs.isnan() if allows_unknown else None), 0
    # A finite sum is one pass over the numbers; only one that is not needs a second look.
    if not math.isfinite(float(theirs.sum())):
        known, skipped = _finite_rows(term, theirs, known, non_finite)
    pairs = None
    if known is not None:
        pairs = known.flatten(2).any(-1) if known.ndim > 2 else known
        theirs = torch.where(known, theirs, 0.0)
        # where() before the distance keeps the gradient of unknown entries exactly zero.
        ours = torch.where(known, ours, 0.0)
    distance = DISCREPANCIES[term.discrepancy]
    if term.normalize == "elements":
        distance = _squares
    vanishes = term.order == 2 and (known is None or bool(known.any())) and not bool(ours.any())
    is_scaled = term.normalize != "none"
    reference = distance(torch.zeros_like(theirs), theirs) if is_scaled else None
    return Matched(distance(ours, theirs), reference, pairs, vanishes, skipped)


def _finite_rows(
    term: SobolevTerm,
    theirs: Float[Tensor, "proj batch *d"],
    known: Bool[Tensor, "proj batch *d"] | None,
    non_finite: str,
) -> tuple[Bool[Tensor, "proj batch *d"] | None, int]:
    """Return what is known when rows with a target that is not finite are left out, and how many.

    Raises:
        ValueError: If there are such rows and they are not to be left out.
    """
    seen = torch.ones_like(theirs, dtype=torch.bool) if known is None else known
    bad_rows = (seen & ~theirs.isfinite()).transpose(0, 1).flatten(1).any(1)
    skipped = int(bad_rows.sum())
    if not skipped:  # finite numbers whose sum is too large
        return known, 0
    if non_finite == "raise":
        raise ValueError(
            f"the teacher's answer for term {term.key!r} must be finite, got NaN or Inf in "
            f"{skipped} of {len(bad_rows)} rows; non_finite='skip' leaves such rows out"
        )
    return seen & ~bad_rows.reshape(1, -1, *[1] * (seen.ndim - 2)), skipped


def reduced(
    term: SobolevTerm,
    matched: Matched,
    scales: RunningScales,
    sum_over_processes: Callable[[Tensor], Tensor] = lambda total: total,
) -> Float[Tensor, ""]:
    """Reduce a matched term to the unweighted scalar, divided by its running scale.

    Args:
        term: The term; its ``normalize`` says whether a scale is used.
        matched: Distances with their axes.
        scales: Running state, changed in place.
        sum_over_processes: Sums a small vector over processes, so that all use one scale.

    Returns:
        The mean over known (projection, row) pairs; zero when there is none.

    Raises:
        ValueError: If the target is too large to be a scale.
    """
    total, count = _known_sum(matched.distance, matched.known)
    mean = total / count.clamp_min(1.0)
    if term.normalize == "none":
        return mean
    assert matched.reference is not None
    energies, rows = _known_sum(matched.reference, matched.known)
    totals = sum_over_processes(torch.cat([energies.reshape(-1), rows[None]]).detach())
    energy, known = float(totals[:-1].sum()), float(totals[-1])
    if not known > 0.0:
        return mean.sum()  # nothing is known in this batch: zero, and the scale stays
    if not math.isfinite(energy):  # one such batch would make the term zero for good
        raise ValueError(
            f"the target of term {term.key!r} must be small enough to be squared in "
            f"{mean.dtype}, got a sum of {energy}; rescale it or use normalize='none'"
        )
    scale = scales.update(term.key, (totals[:-1] / totals[-1]).reshape(mean.shape))
    return by_element(mean, scale) if term.normalize == "elements" else mean / scale


def _known_sum(numbers: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum over known (projection, row) pairs; elements stay apart."""
    if known is None:
        return numbers.sum((0, 1)), numbers.new_full((), numbers.shape[:2].numel())
    weights = known.to(numbers.dtype)
    return torch.einsum("pb,pb...->...", weights, numbers), weights.sum()


def _squares(student: Tensor, target: Tensor) -> Float[Tensor, "proj batch elements"]:
    # An unknown element is zero on both sides, in the error and in its scale.
    return (student - target).square().reshape(*student.shape[:2], -1)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the named terms with their weights, the last step of a loss."""
    parts = [weights[key] * term for key, term in terms.items()]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def projected(
    term: SobolevTerm, jet: Jet, cotangents: Tensor | None, tangents: Tensor | None
) -> Float[Tensor, "proj batch ..."]:
    """Ask a jet for what a term compares.

    Args:
        term: The term; of order 2 with ``num_projections=None``, each cotangent meets each tangent.
        jet: The student's or the teacher's.
        cotangents: ``[proj, batch, *out]`` where the term needs them.
        tangents: ``[proj, batch, *in]`` where the term needs them.

    Returns:
        The value with a projection axis of one, or the projected derivative.
    """
    if term.order == 0:
        return jet.value.unsqueeze(0)
    if not term.needs_tangents:
        assert cotangents is not None
        return jet.vjp(cotangents)
    assert tangents is not None
    if not term.needs_cotangents:
        return jet.jvp(tangents)
    assert cotangents is not None
    if term.num_projections is None:
        each = tangents.repeat(len(cotangents), *[1] * (tangents.ndim - 1))
        return jet.hvp(cotangents.repeat_interleave(len(tangents), 0), each)
    return jet.hvp(cotangents, tangents)


def _answer(
    term: SobolevTerm, student: Jet, target: Jet, cotangents: Tensor | None, tangents: Tensor | None
) -> Tensor:
    # A network that gives [batch] may teach one that gives [batch, 1].
    if (
        cotangents is not None
        and isinstance(target, TapeJet)
        and _without_ones(target.value.shape) == _without_ones(cotangents.shape[1:])
    ):
        cotangents = cotangents.reshape(len(cotangents), *target.value.shape)
    try:
        return projected(term, target, cotangents, tangents)
    except ValueError as error:
        raise ValueError(
            f"term {term.key!r}: the teacher must answer for a student whose output is "
            f"{list(student.value.shape[1:])}, got: {error}"
        ) from error


def _aligned(term: SobolevTerm, ours: Tensor, theirs: Tensor) -> Tensor:
    # Only axes of length one may differ: a [batch, 1] output against a [batch] target would
    # broadcast to [batch, batch].
    if ours.shape == theirs.shape:
        return theirs
    if _without_ones(ours.shape[1:]) != _without_ones(theirs.shape[1:]):
        raise ValueError(
            f"student and teacher must agree in shape for term {term.key!r}, got "
            f"{list(ours.shape[1:])} from the student and {list(theirs.shape[1:])} from the teacher"
        )
    return theirs.reshape(ours.shape)


def _at_least_single(rows: Tensor) -> Tensor:
    # Squares of half-precision rows overflow and underflow.
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], *(size for size in shape[1:] if size != 1))
