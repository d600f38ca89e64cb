r"""Weights that follow the lengths of parameter gradients.

A term of weight w pulls the parameters with :math:`w \lVert\nabla_\theta \text{term}\rVert`, the
value loss with :math:`\lVert\nabla_\theta L\rVert`. With

.. math:: w \leftarrow m\,w + (1 - m)\, r\,
    \frac{\lVert\nabla_\theta L\rVert}{\lVert\nabla_\theta \text{term}\rVert}

the two stay in the ratio r, in whatever units either is measured.

Source:
    Wang, Teng and Perdikaris 2021 (arXiv:2001.04536), algorithm 1; with L2 norms in the place of
    its maximum and mean.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.spec import SobolevTerm


@dataclass(frozen=True, slots=True)
class Balanced:
    """A weight that keeps a term's parameter gradient ``ratio`` times as long as the value loss's.

    It is measured again every few steps, at the cost of one more backward pass of the value loss
    and one of the term each time, and needs no tuning to units. As the value loss comes to rest
    the weight falls with it.

    Args:
        ratio: Length of the weighted term's gradient in units of that of the value loss.
        every_n_steps: Steps between two measurements.
        memory: Share of the old weight that a measurement keeps.

    Raises:
        ValueError: If a field is out of its range.

    Source:
        Wang, Teng and Perdikaris 2021, Understanding and mitigating gradient flow pathologies in
        physics-informed neural networks (arXiv:2001.04536).
    """

    ratio: float = 1.0
    every_n_steps: int = 10
    memory: float = 0.9

    def __post_init__(self) -> None:
        require(0.0 < self.ratio < math.inf, "ratio", "a finite number > 0", self.ratio)
        require(self.every_n_steps >= 1, "every_n_steps", "at least 1", self.every_n_steps)
        require(0.0 <= self.memory < 1.0, "memory", "in [0, 1)", self.memory)

    def at(self, step: int) -> float:
        """Return ``ratio``, the weight of a term that was not measured yet."""
        del step
        return self.ratio


def check_balanced(terms: Sequence[SobolevTerm], obstacle: str | None) -> None:
    """Refuse weights that cannot be measured.

    Balancing takes gradients of which no process has the whole (sharded), two backward passes
    through a graph that gives its buffers away in one (compiled), and would change the function
    that a line search compares within one step.

    Raises:
        ValueError: If there is an obstacle and a balanced weight.
    """
    for term in terms:
        fits = obstacle is None or not isinstance(term.weight, Balanced)
        expected = f"a number or a schedule where {obstacle}"
        require(fits, f"weight of {term.key}", expected, term.weight)


@dataclass(slots=True)
class RunningBalance:
    """The present weight of every balanced term."""

    state: dict[str, float] = field(default_factory=dict)

    def weights(
        self, terms: Mapping[str, Tensor], spec: Sequence[SobolevTerm], step: int,
        value_loss: Tensor, parameters: Callable[[], Iterable[Tensor]],
        sum_over_processes: Callable[[Tensor], Tensor] = lambda total: total,
    ) -> dict[str, float]:  # fmt: skip
        """Return every term's weight at a step; measure those that are balanced and due.

        ``parameters`` are asked only where a term is measured; ``sum_over_processes`` lets all
        processes use one weight.
        """
        weights = {}
        for term in spec:
            weights[term.key] = term.weight_at(step)
            if not isinstance(term.weight, Balanced) or term.key not in terms:
                continue
            # every_n_steps of the term itself multiplies what it weighs.
            share = weights[term.key] / term.weight.ratio
            if term.key not in self.state or step % term.weight.every_n_steps == 0:
                trained = [p for p in parameters() if p.requires_grad]
                pair = (value_loss, share * terms[term.key])
                squares = torch.stack([_gradient_square(loss, trained) for loss in pair])
                norms = sum_over_processes(squares).sqrt()
                self._move(term.key, term.weight, *norms.tolist())
            weights[term.key] = share * self.state.get(term.key, term.weight.ratio)
        return weights

    def _move(self, key: str, balanced: Balanced, value: float, derivative: float) -> None:
        if not derivative > 0.0:  # nothing is known in this batch, or nothing is left to learn
            return
        found = balanced.ratio * value / derivative
        before = self.state.get(key, found)
        self.state[key] = balanced.memory * before + (1.0 - balanced.memory) * found


def _gradient_square(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    squares = [torch.zeros((), device=loss.device)]
    if loss.requires_grad:
        # The graph is needed once more, by the step's own backward.
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        squares += [gradient.float().square().sum() for gradient in found if gradient is not None]
    return torch.stack(squares).sum()
