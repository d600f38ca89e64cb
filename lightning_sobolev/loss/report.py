"""What came of one evaluation of the terms."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_sobolev.loss.checks import Check
from lightning_sobolev.loss.compare import Comparison


@dataclass(slots=True, eq=False)
class Report:
    """The terms of one evaluation; ``value + report`` adds their weighted sum to a loss.

    Args:
        loss: The weighted sum, with a graph.
        terms: Every term that was evaluated, unweighted, with its own graph: for gradient surgery.
        weights: What each was multiplied with.
        size: Number of rows of the observed input.
        unknown: Rows without any known target, by term, where a teacher may not know.
        skipped: Rows left out because their target is not finite, by term.
        any_known: Whether anything is known of the target, by term.
        vanishes: Whether the student has no second derivative at all, by term.
        cosines: Mean cosine of the student's and the target's derivative, where it was asked for.
        leaves: Inputs of our own that the backward pass leaves a gradient in.
        pending: Numbers that are still to be looked at.
        points: Where the terms are evaluated, meanwhile.
        targets: What was asked for, meanwhile.
        has_more: Whether there is more to tell than the terms.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    size: int = 0
    unknown: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, Tensor] = field(default_factory=dict)
    any_known: dict[str, Tensor] = field(default_factory=dict)
    vanishes: dict[str, Tensor] = field(default_factory=dict)
    cosines: dict[str, Tensor] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    pending: list[Check] = field(default_factory=list)
    points: dict[Any, Any] = field(default_factory=dict)
    targets: list[Any] = field(default_factory=list)
    has_more: bool = False

    def __add__(self, other: Any) -> Tensor:
        total: Tensor = self.loss + other
        return total

    __radd__ = __add__

    def __float__(self) -> float:
        return float(self.loss.detach())

    def let_go(self) -> None:
        """Keep the numbers without their graphs, which would outlive the step."""
        self.loss = self.loss.detach()
        for key, term in self.terms.items():
            self.terms[key] = term.detach()
        self.leaves, self.pending = [], []

    def backward(self, **options: Any) -> None:
        """Back-propagate the weighted sum alone."""
        torch.autograd.backward(self.loss, **options)

    def take_in(self, key: str, comparison: Comparison, *, counts_unknown: bool) -> None:
        """Note what there is to say about a term beside its size."""
        self.has_more = True
        if comparison.skipped is not None:
            self.skipped[key] = comparison.skipped
        if comparison.vanishes is not None:
            self.vanishes[key] = comparison.vanishes
        if comparison.known is None:
            return
        self.any_known[key] = comparison.known.any()
        if counts_unknown:
            unknown = (~comparison.known).all(0).sum()
            skipped = comparison.skipped
            self.unknown[key] = unknown if skipped is None else unknown - skipped


def cosine(student: Tensor, target: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean cosine of rows over the pairs that are known."""
    student, target = student.detach(), target.nan_to_num()
    if student.ndim == 2:
        student, target = student[..., None], target[..., None]
    student, target = student.flatten(2), target.flatten(2)
    found = torch.nn.functional.cosine_similarity(student, target, dim=-1)
    if known is None:
        return found.mean()
    return (found * known).sum() / known.sum().clamp_min(1)
