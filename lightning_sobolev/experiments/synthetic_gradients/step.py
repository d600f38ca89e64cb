r"""One step: forward through the sections, then down from cut to cut.

With sections :math:`f_0, \dots, f_K` and :math:`h_i = f_{i-1}(h_{i-1})` detached at every cut i,
the model at cut i predicts :math:`m_i(h_i, y)` and its derivative. Section :math:`i - 1` is moved
along that derivative, whatever the truth is. The target of the highest model is the true loss of
the section above it; that of a lower one is what the next model predicts, carried down through the
section between them:

.. math:: m_i(h_i, y) \leftarrow m_{i+1}(f_i(h_i), y), \qquad
    \partial m_i / \partial h_i \leftarrow
    J_{f_i}(h_i)^\top \, \partial m_{i+1} / \partial h_{i+1}.

A model may be updated several times by the same pair of activation and target, which costs neither
another pass of a section nor another message: models must follow sections that move as fast as
back-propagation likes best.

Gradients of rows are those of the sum over the batch: batch norm in train mode ties rows together,
and what a row does to others is counted as its own.

Source: Czarnecki et al. 2017 (arXiv:1706.04859), section on synthetic gradients; bootstrapped
targets as in Jaderberg et al. 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv:1608.05343).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.matching import (
    LossGradient,
    Matching,
    compare,
)
from lightning_sobolev.experiments.synthetic_gradients.models import Labels
from lightning_sobolev.functional.derivatives import TapeJet
from lightning_sobolev.loss.reduce import RunningScales, weighted_sum


@dataclass(slots=True)
class Stage:
    """A section and the model of the cut above it. Adds gradients to parameters, moves none.

    The one process of a module takes all stages in turns; else each lives in a process of its own.
    """

    section: nn.Module
    model: nn.Module | None  # none at the top, and where the kind has none
    kind: Kind
    matching: Matching
    is_lowest: bool  # it gets the network's inputs, below which there is nobody
    is_highest: bool  # it gives logits
    scales: RunningScales = field(default_factory=RunningScales)
    _input: Tensor | None = None
    _output: Tensor | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the section is moved at all."""
        return self.is_highest or self.kind.gradient != "none"

    def forward(self, x: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch *out"]:
        """Run the section on a tape of its own; what it returns has no graph."""
        if not self.is_trained:
            with torch.no_grad():
                return self.section(x)  # type: ignore[no-any-return]
        self._input = x if self.is_lowest else x.detach().requires_grad_()
        self._output = self.section(self._input)
        return self._output.detach()

    def predict(
        self, h: Float[Tensor, "batch *out"], y: Labels, *, create_graph: bool
    ) -> LossGradient:
        """Ask the model for a synthetic gradient; with ``create_graph`` it can be taught by it."""
        assert self.model is not None
        if self.kind.model == "gradient":
            return LossGradient(self.model(h.detach(), y))
        leaf = h.detach().requires_grad_()
        value = self.model(leaf, y)
        jet = TapeJet(value, leaf, create_graph=create_graph and self.kind.matches_derivative)
        return LossGradient(jet.vjp(torch.ones_like(value)[None])[0], value)

    def backward(self, at_output: LossGradient | None, y: Labels) -> LossGradient | None:
        """Add the gradients of the section's last forward pass; ``at_output`` is unused at the top.

        Returns what the model below should have predicted; None at the bottom.
        """
        x, output = self._input, self._output
        assert x is not None
        assert output is not None
        self._input = self._output = None
        value: Tensor | None
        if self.is_highest:
            value = cross_entropy(output, y, reduction="none")
            value.mean().backward()  # type: ignore[no-untyped-call]
        else:
            assert at_output is not None
            value = at_output.value
            output.backward(at_output.gradient.detach() / len(output))  # type: ignore[no-untyped-call]
        if x.grad is None:
            return None
        # of a mean over the batch
        return LossGradient(x.grad * len(x), None if value is None else value.detach())

    def teach(
        self, predicted: LossGradient, target: LossGradient, *, is_new: bool = True
    ) -> dict[str, Tensor]:
        """Add the gradients of the model; return the terms, unweighted, by name.

        A target that is not new has been taken in by the running scales, and leaves them alone.
        """
        terms = self.matching.terms(self.kind)
        scales = self.scales if is_new else replace(self.scales, frozen=True)  # of the same state
        found = compare(terms, predicted, target, scales)
        if found:
            loss = weighted_sum(found, {term.key: term.weight_at(0) for term in terms})
            if loss.requires_grad:  # an exact model has no parameters
                loss.backward()  # type: ignore[no-untyped-call]
        return {name: term.detach() for name, term in found.items()}


def build_stages(
    sections: Sequence[nn.Module], models: Sequence[nn.Module], kind: Kind, matching: Matching
) -> list[Stage]:
    """Join sections, the lowest first, and the models of the cuts, if the kind has any."""
    needed = 0 if kind.model is None else len(sections) - 1
    require(len(models) == needed, "models", f"{needed} for this kind and cuts", len(models))
    above = [*models, *[None] * (len(sections) - needed)]
    return [
        Stage(section, model, kind, matching, number == 0, number == len(sections) - 1)
        for number, (section, model) in enumerate(zip(sections, above, strict=True))
    ]


class Pair(NamedTuple):
    """What a model is taught: loss and gradient at an activation of its cut."""

    h: Float[Tensor, "batch *out"]
    target: LossGradient


class Step(NamedTuple):
    """The mean loss of the network, its answers, and by cut what models were taught, and how."""

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch classes"]
    terms: dict[int, dict[str, Tensor]]
    pairs: dict[int, Pair]


def take_step(stages: Sequence[Stage], x: Float[Tensor, "batch *in"], y: Labels) -> Step:
    """Add the gradients of one batch to the parameters of sections and models, and move none."""
    activations = [x]
    for stage in stages:
        activations.append(stage.forward(activations[-1]))
    target = stages[-1].backward(None, y)
    assert target is not None
    assert target.value is not None
    step = Step(target.value.mean(), activations[-1], {}, {})
    for cut in range(len(stages) - 1, 0, -1):
        stage = stages[cut - 1]
        if not stage.is_trained:
            break
        assert target is not None
        at_output = target
        if stage.model is not None:
            at_output = stage.predict(activations[cut], y, create_graph=True)
            step.terms[cut] = stage.teach(at_output, target)
            step.pairs[cut] = Pair(activations[cut], target)
        target = stage.backward(at_output, y)
    return step


def teach_again(stages: Sequence[Stage], pairs: Mapping[int, Pair], y: Labels) -> None:
    """Add the gradients of models that have moved since, at what a step has taught them.

    Nothing is computed anew but their answers: no section runs, and no other model is asked.
    """
    for cut, (h, target) in pairs.items():
        stage = stages[cut - 1]
        stage.teach(stage.predict(h, y, create_graph=True), target, is_new=False)
