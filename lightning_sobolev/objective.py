r"""From two jets to named terms: what is matched, divided by its scale, reduced once.

.. math:: \text{term}_j = \frac{1}{s_j\,|R|} \sum_{(p, b) \in R}
    \ell_j\big(\mathrm{proj}_p D^j m(x_b),\ \mathrm{proj}_p D^j f(x_b)\big)

``R`` are the (projection, row) pairs with any known target entry and :math:`s_j` the running mean
of :math:`\ell_j(0, \cdot)`, or 1. The module is usable without a Trainer (Fabric, a plain loop).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import Jet
from lightning_sobolev.compared import Matched, check_target, compare, without_ones
from lightning_sobolev.functional.derivatives import FuncJet, TapeJet
from lightning_sobolev.readings import Reader, at_once
from lightning_sobolev.scales import RunningScales, by_element
from lightning_sobolev.spec import SobolevTerm

__all__ = [
    "Matched",
    "RunningScales",
    "against",
    "answer",
    "compare",
    "match",
    "projected",
    "reduced",
    "weighted_sum",
]


def match(
    term: SobolevTerm, student: Jet, target: Jet, *,
    cotangents: Tensor | None = None, tangents: Tensor | None = None, allows_unknown: bool = False,
) -> Matched:  # fmt: skip
    """Return distances of one projected derivative of two jets, by projection and row.

    ``cotangents`` and ``tangents`` are given where the term needs them; with ``allows_unknown`` NaN
    in the target masks an entry instead of being an error.

    Raises:
        ValueError: If the shapes of student and target differ, or the target is not finite.
    """
    theirs = answer(term, student, target, cotangents, tangents)
    return against(
        term, student, theirs,
        cotangents=cotangents, tangents=tangents, allows_unknown=allows_unknown,
    )  # fmt: skip


def against(
    term: SobolevTerm, student: Jet, theirs: Float[Tensor, "proj batch ..."], *,
    cotangents: Tensor | None = None, tangents: Tensor | None = None, allows_unknown: bool = False,
    non_finite: Literal["raise", "skip"] = "raise", read: Reader = at_once,
) -> Matched:  # fmt: skip
    """Return distances between a student's jet and what :func:`answer` gave, as :func:`match` does.

    Rows whose target is NaN or Inf are an error or, with ``non_finite="skip"``, left out; ``read``
    says when the target is looked at.
    """
    ours = projected(term, student, cotangents, tangents)
    matched = compare(term, ours, theirs, allows_unknown=allows_unknown, non_finite=non_finite)
    if non_finite == "raise":
        assert matched.total is not None
        read(matched.total, lambda total: check_target(term, total, theirs, allows_unknown))
    return matched


def reduced(
    term: SobolevTerm,
    matched: Matched,
    scales: RunningScales,
    sum_over_processes: Callable[[Tensor], Tensor] = lambda total: total,
    read: Reader = at_once,
) -> Float[Tensor, ""]:
    """Return a matched term as its unweighted mean, divided by its running scale.

    The mean is over known (projection, row) pairs, zero when there is none. ``sum_over_processes``
    sums a small vector, so that all processes use one scale, which is changed in place; ``read``
    says when the size of the target is looked at.

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
    may_be_empty = matched.known is not None or not len(matched.distance[0])
    if may_be_empty and not float(totals[-1]) > 0.0:
        return mean.sum()  # nothing is known in this batch: zero, and the scale stays
    read(totals[:-1].sum(), lambda energy: _check_energy(term, energy, mean.dtype))
    scale = scales.update(term.key, (totals[:-1] / totals[-1]).reshape(mean.shape))
    return by_element(mean, scale) if term.normalize == "elements" else mean / scale


def _check_energy(term: SobolevTerm, energy: float, dtype: torch.dtype) -> None:
    if not math.isfinite(energy):  # one such batch would make the term zero for good
        raise ValueError(
            f"the target of term {term.key!r} must be small enough to be squared in "
            f"{dtype}, got a sum of {energy}; rescale it or use normalize='none'"
        )


def _known_sum(numbers: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    if known is None:
        return numbers.sum((0, 1)), numbers.new_full((), numbers.shape[:2].numel())
    weights = known.to(numbers.dtype)
    return torch.einsum("pb,pb...->...", weights, numbers), weights.sum()


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Sum the named terms with their weights, the last step of a loss."""
    return functools.reduce(torch.add, [weights[key] * term for key, term in terms.items()])


def projected(
    term: SobolevTerm, jet: Jet, cotangents: Tensor | None, tangents: Tensor | None
) -> Float[Tensor, "proj batch ..."]:
    """Ask a jet for what a term compares: its value as one projection, or a derivative."""
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


def answer(
    term: SobolevTerm, student: Jet, target: Jet, cotangents: Tensor | None, tangents: Tensor | None
) -> Float[Tensor, "proj batch ..."]:
    """Ask the teacher for what a term compares, in the shape of the student's output."""
    # A network that gives [batch] may teach one that gives [batch, 1].
    if (
        cotangents is not None
        and isinstance(target, TapeJet | FuncJet)
        and without_ones(target.value.shape) == without_ones(cotangents.shape[1:])
    ):
        cotangents = cotangents.reshape(len(cotangents), *target.value.shape)
    try:
        return projected(term, target, cotangents, tangents)
    except ValueError as error:
        raise ValueError(
            f"term {term.key!r}: the teacher must answer for a student whose output is "
            f"{list(student.value.shape[1:])}, got: {error}"
        ) from error
