"""How the model at a cut is taught: the package's objective, with a tabulated target."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.prediction import LossGradient
from lightning_sobolev.objective import RunningScales, match, reduced
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.tabulated import TabulatedJet


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Weights of what a model is taught.

    Args:
        value_weight: Of the loss values.
        derivative_weight: Of their derivatives, or of the gradient that is regressed.
        normalize: ``"target"`` divides each by the running mean square of its target, ``"none"``
            is the raw form of the paper; see ``SobolevTerm``.

    Raises:
        ValueError: If a weight or the normalisation is not one that a ``SobolevTerm`` takes.
    """

    value_weight: float = 1.0
    derivative_weight: float = 1.0
    normalize: Literal["target", "none"] = "target"

    def __post_init__(self) -> None:
        for name in ("value_weight", "derivative_weight"):
            weight = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number >= 0, got {weight!r}")
        self._term(0, "value", 1.0)  # checks the rest

    def terms(self, kind: Kind) -> tuple[SobolevTerm, ...]:
        """Return the terms by which models of a kind are taught.

        Args:
            kind: Its switches choose among them.
        """
        if kind.model == "gradient":
            # the model's value is the gradient
            return (self._term(0, "gradient", self.derivative_weight),)
        terms = (
            (kind.matches_value, self._term(0, "value", self.value_weight)),
            (kind.matches_derivative, self._term(1, "derivative", self.derivative_weight)),
        )
        return tuple(term for matched, term in terms if matched)

    def _term(self, order: int, name: str, weight: float) -> SobolevTerm:
        return SobolevTerm(
            order=order,
            name=name,
            weight=weight,
            projection="basis",  # one output: its only direction
            num_projections=None,
            normalize=self.normalize,
        )


def compare(
    terms: tuple[SobolevTerm, ...],
    predicted: LossGradient,
    target: LossGradient,
    scales: RunningScales,
) -> dict[str, Tensor]:
    """Compare what a model predicted with what it should have predicted.

    Args:
        terms: What is matched, see ``Matching.terms``.
        predicted: The model's prediction, with a graph to its parameters.
        target: What arrived from above.
        scales: Running state of the normalisation, changed in place.

    Returns:
        The terms, unweighted, by name. A gradient that is zero everywhere is left out: it comes
        from a model above that has not learned anything yet, and there is nothing to divide by.
    """
    ones = predicted.gradient.new_ones(1, len(predicted.gradient))
    found = {}
    for term in terms:
        if term.name != "value" and not bool(target.gradient.any()):
            continue
        matched = match(term, _jet(predicted, term), _jet(target, term), cotangents=ones)
        found[term.key] = reduced(term, matched, scales)
    return found


def _jet(at: LossGradient, term: SobolevTerm) -> TabulatedJet:
    shape = at.gradient.shape[1:]
    if term.name == "gradient":
        return TabulatedJet(shape, value=at.gradient)
    return TabulatedJet(shape, value=at.value, jacobian=at.gradient)
