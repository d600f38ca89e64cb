"""What student and teacher said, compared: no number is looked at, so it compiles whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sobolev.functional.band_limits import low_pass, space_axes
from lightning_sobolev.functional.discrepancies import DISCREPANCIES
from lightning_sobolev.spec import SobolevTerm


@dataclass(frozen=True, slots=True)
class Matched:
    """One term before reduction, by projection and row; ``distance`` also by element where asked.

    ``reference`` is the distance of the target from zero, ``known`` says which pairs have any known
    target entry, ``vanishes`` whether the student's side of an order-2 term is zero everywhere;
    ``skipped`` counts rows whose target is not finite, ``total`` sums what is known of the target.
    """

    distance: Float[Tensor, "proj batch ..."]
    reference: Float[Tensor, "proj batch ..."] | None
    known: Bool[Tensor, "proj batch"] | None = None
    vanishes: Bool[Tensor, ""] | None = None
    skipped: Tensor | None = None
    total: Float[Tensor, ""] | None = None


def compare(
    term: SobolevTerm, ours: Float[Tensor, "proj batch ..."],
    theirs: Float[Tensor, "proj batch ..."], *,
    allows_unknown: bool = False, non_finite: Literal["raise", "skip"] = "raise",
) -> Matched:  # fmt: skip
    """Compare what student and teacher said; looks at no number, so it compiles whole."""
    ours = _at_least_single(ours)
    theirs = _at_least_single(_aligned(term, ours, theirs).detach())
    known, skipped = (~theirs.isnan() if allows_unknown else None), None
    if non_finite == "skip":
        known, skipped = _finite_rows(theirs, known)
    pairs = None
    if known is not None:
        known = _whole_rows(known) if _is_filtered(term) else known
        pairs = known.flatten(2).any(-1) if known.ndim > 2 else known
        theirs = torch.where(known, theirs, 0.0)
        # where() before the distance keeps the gradient of unknown entries exactly zero.
        ours = torch.where(known, ours, 0.0)
    # A finite sum is one pass over the numbers; only one that is not needs a second look.
    total = theirs.sum()
    if _is_filtered(term):
        ours, theirs = (_filtered(term, rows) for rows in (ours, theirs))
    distance = _squares if term.normalize == "elements" else DISCREPANCIES[term.discrepancy]
    vanishes = _vanishes(ours, known) if term.order == 2 else None
    is_scaled = term.normalize != "none"
    reference = distance(torch.zeros_like(theirs), theirs) if is_scaled else None
    return Matched(distance(ours, theirs), reference, pairs, vanishes, skipped, total)


def _whole_rows(known: Bool[Tensor, "proj batch *in"]) -> Bool[Tensor, "proj batch *in"]:
    # Each number of a filtered row needs all others.
    whole = known.flatten(2).all(-1).reshape(*known.shape[:2], *[1] * (known.ndim - 2))
    return whole.expand_as(known)


def _vanishes(ours: Tensor, known: Tensor | None) -> Bool[Tensor, ""]:
    is_zero = ~ours.detach().any()
    return is_zero if known is None else is_zero & known.any()


def _is_filtered(term: SobolevTerm) -> bool:
    return term.band is not None and term.needs_cotangents


def _filtered(term: SobolevTerm, rows: Float[Tensor, "proj batch *in"]) -> Tensor:
    assert term.band is not None
    return low_pass(rows, term.band, space_axes(rows.shape[2:], term.band, f"term {term.key!r}"))


def _squares(student: Tensor, target: Tensor) -> Float[Tensor, "proj batch elements"]:
    # An unknown element is zero on both sides, in the error and in its scale.
    return (student - target).square().reshape(*student.shape[:2], student.shape[2:].numel())


def check_target(
    term: SobolevTerm, total: float, theirs: Tensor | None, allows_unknown: bool
) -> None:
    """Refuse a teacher's answer that holds NaN or Inf; it may be gone by then, but for its sum."""
    if math.isfinite(total):
        return
    where = "some rows"
    if theirs is not None:
        known = ~theirs.isnan() if allows_unknown else None
        count = int(_finite_rows(_at_least_single(theirs), known)[1])
        if not count:  # finite numbers whose sum is too large
            return
        where = f"{count} of {theirs.shape[1]} rows"
    raise ValueError(
        f"the teacher's answer for term {term.key!r} must be finite, got NaN or Inf in {where}; "
        "non_finite='skip' leaves such rows out"
    )


def _finite_rows(
    theirs: Float[Tensor, "proj batch *d"], known: Bool[Tensor, "proj batch *d"] | None
) -> tuple[Bool[Tensor, "proj batch *d"], Tensor]:
    seen = torch.ones_like(theirs, dtype=torch.bool) if known is None else known
    bad_rows = (seen & ~theirs.isfinite()).transpose(0, 1).flatten(1).any(1)
    return seen & ~bad_rows.reshape(1, -1, *[1] * (seen.ndim - 2)), bad_rows.sum()


def _aligned(term: SobolevTerm, ours: Tensor, theirs: Tensor) -> Tensor:
    # Only axes of length one may differ: a [batch, 1] output against a [batch] target would
    # broadcast to [batch, batch].
    if ours.shape == theirs.shape:
        return theirs
    if without_ones(ours.shape[1:]) != without_ones(theirs.shape[1:]):
        raise ValueError(
            f"student and teacher must agree in shape for term {term.key!r}, got "
            f"{list(ours.shape[1:])} from the student and {list(theirs.shape[1:])} from the teacher"
        )
    return theirs.reshape(ours.shape)


def _at_least_single(rows: Tensor) -> Tensor:
    # Squares of half-precision rows overflow and underflow.
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape without axes of length one behind the first."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def joined(parts: list[Matched]) -> Matched:
    """Put what was matched at several calls together, row after row."""
    distance = torch.cat([part.distance for part in parts], dim=1)
    references = [part.reference for part in parts if part.reference is not None]
    known = None
    if any(part.known is not None for part in parts):
        whole = [part.distance.new_ones(part.distance.shape[:2]).bool() for part in parts]
        pairs = zip(parts, whole, strict=True)
        known = torch.cat([every if p.known is None else p.known for p, every in pairs], dim=1)
    skipped = [part.skipped for part in parts if part.skipped is not None]
    flat = [part.vanishes for part in parts if part.vanishes is not None]
    return Matched(
        distance,
        torch.cat(references, dim=1) if references else None,
        known,
        torch.stack(flat).any() if flat else None,
        torch.stack(skipped).sum() if skipped else None,
    )
