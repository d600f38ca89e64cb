"""How the model at a cut is taught: the package's objective, with a tabulated target."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev._types import Directions
from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.loss.compare import evaluate
from lightning_sobolev.loss.reduce import RunningScales, reduce
from lightning_sobolev.schedules import is_weight
from lightning_sobolev.spec import SobolevTerm
from lightning_sobolev.teachers.tabulated import TabulatedJet


@dataclass(frozen=True, slots=True)
class LossGradient:
    """The loss of every row at the activation of a cut and its gradient, true or predicted."""

    gradient: Float[Tensor, "batch *in"]  # not divided by the batch
    value: Float[Tensor, " batch"] | None = None  # none where only a gradient is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """Weights of what a model is taught.

    Args:
        value_weight: Of the loss values.
        derivative_weight: Of their derivatives, or of the gradient that is regressed.
        normalize: ``"target"`` divides each by the running mean square of its target, ``"none"``
            is the raw form of the paper; see ``SobolevTerm``.
    """

    value_weight: float = 1.0
    derivative_weight: float = 1.0
    normalize: Literal["target", "none"] = "target"

    def __post_init__(self) -> None:
        for name in ("value_weight", "derivative_weight"):
            weight = getattr(self, name)
            require(is_weight(weight), name, "a finite number >= 0", weight)
        self._term(0, "value", 1.0)  # checks the rest

    def terms(self, kind: Kind) -> list[SobolevTerm]:
        """Return the terms by which models of a kind are taught."""
        if kind.model == "gradient":
            # the model's value is the gradient
            return [self._term(0, "gradient", self.derivative_weight)]
        terms = []
        if kind.matches_value:
            terms.append(self._term(0, "value", self.value_weight))
        if kind.matches_derivative:
            terms.append(self._term(1, "derivative", self.derivative_weight))
        return terms

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
    terms: list[SobolevTerm], predicted: LossGradient, target: LossGradient, scales: RunningScales
) -> dict[str, Tensor]:
    """Return the terms, unweighted, by name.

    A gradient that is zero everywhere is left out: it comes from a model above that has not
    learned anything yet, and there is nothing to divide by.
    """
    ones = predicted.gradient.new_ones(1, len(predicted.gradient))
    found = {}
    for term in terms:
        if term.name == "value" or bool(target.gradient.any()):
            jets = _jet(predicted, term), _jet(target, term)
            found[term.key], _ = reduce(term, evaluate(term, *jets, Directions(ones)), scales)
    return found


def _jet(at: LossGradient, term: SobolevTerm) -> TabulatedJet:
    shape = at.gradient.shape[1:]
    if term.name == "gradient":
        return TabulatedJet(shape, value=at.gradient)
    return TabulatedJet(shape, value=at.value, jacobian=at.gradient)
