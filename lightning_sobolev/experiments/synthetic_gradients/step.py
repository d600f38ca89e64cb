r"""One step: forward through the sections, then down from cut to cut.

With sections :math:`f_0, \dots, f_K` and :math:`h_i = f_{i-1}(h_{i-1})` detached at every cut i,
the model at cut i says :math:`m_i(h_i, y)` and its derivative. Section :math:`i - 1` is moved along
that derivative, whatever the truth is. The target of the highest model is the true loss of the
section above it; that of a lower one is what the next model said, carried down through the section
between them:

.. math:: m_i(h_i, y) \leftarrow m_{i+1}(f_i(h_i), y), \qquad
    \partial m_i / \partial h_i \leftarrow
    J_{f_i}(h_i)^\top \, \partial m_{i+1} / \partial h_{i+1}.

Gradients of rows are those of the sum over the batch: batch norm in train mode ties rows together,
and what a row does to others is counted as its own.

Source: Czarnecki et al. 2017 (arXiv:1706.04859), section on synthetic gradients; bootstrapped
targets as in Jaderberg et al. 2017, Decoupled Neural Interfaces using Synthetic Gradients
(arXiv:1608.05343).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.matching import Matching, compare
from lightning_sobolev.experiments.synthetic_gradients.messages import Message, speak
from lightning_sobolev.objective import RunningScales, weighted_sum


class Backward(Protocol):
    """Adds gradients to parameters: ``Tensor.backward``, or a trainer's."""

    def __call__(self, tensor: Tensor, gradient: Tensor | None = None, /) -> None: ...  # noqa: D102


@dataclass(slots=True)
class Step:
    """What happened in a step.

    Args:
        loss: Mean loss of the whole network.
        logits: Its answers.
        said: What every model said, without a graph, by cut.
        terms: What every model was taught by, unweighted, by cut and name.
    """

    loss: Float[Tensor, ""]
    logits: Float[Tensor, "batch classes"]
    said: dict[int, Message] = field(default_factory=dict)
    terms: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def forward(
    sections: Sequence[nn.Module], x: Float[Tensor, "batch *in"]
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the sections, each on its own tape.

    Args:
        sections: The sections, the lowest first.
        x: Inputs of the network.

    Returns:
        Inputs (leaves above the first) and outputs of every section.
    """
    inputs, outputs = [x], []
    for section in sections:
        outputs.append(section(inputs[-1]))
        inputs.append(outputs[-1].detach().requires_grad_())
    return inputs[:-1], outputs


def take_step(
    sections: Sequence[nn.Module],
    models: Sequence[nn.Module],
    x: Float[Tensor, "batch *in"],
    y: Int[Tensor, " batch"],
    *,
    kind: Kind,
    matching: Matching,
    scales: Sequence[RunningScales],
    backward: Backward = torch.Tensor.backward,
) -> Step:
    """Add the gradients of one batch to the parameters of sections and models.

    All messages are spoken with the parameters as they are: whoever calls this moves them later.

    Args:
        sections: The sections, the lowest first.
        models: A model for every cut, the lowest first; empty where the kind needs none.
        x: Inputs of the network.
        y: Their classes.
        kind: What passes the cuts.
        matching: Weights of what models are taught.
        scales: Running state of the normalisation of every model, changed in place.
        backward: Runs backward passes.

    Returns:
        What happened.
    """
    inputs, outputs = forward(sections, x)
    losses = cross_entropy(outputs[-1], y, reduction="none")
    step = Step(losses.mean().detach(), outputs[-1].detach())
    backward(losses.mean())
    if kind.message == "nothing":
        return step
    arrived = arrived_at(inputs[-1], losses)
    for cut in range(len(sections) - 1, 0, -1):
        if kind.message == "model":
            graph = kind.model == "loss" and kind.matches_derivative
            said = speak(models[cut - 1], kind, inputs[cut], y, create_graph=graph)
            step.terms[cut] = teach(kind, matching, said, arrived, scales[cut - 1], backward)
            step.said[cut] = said.detach()
        message = step.said.get(cut, arrived)
        backward(outputs[cut - 1], message.gradient / len(x))
        if cut > 1:
            arrived = arrived_at(inputs[cut - 1], message.value)
    return step


def arrived_at(h: Float[Tensor, "batch *in"], value: Float[Tensor, " batch"] | None) -> Message:
    """Return what arrived at an activation with a backward pass of a mean over the batch.

    Args:
        h: The activation, a leaf with its gradient.
        value: The losses of which it is the gradient, where they are known.
    """
    assert h.grad is not None
    return Message(h.grad * len(h), value).detach()


def teach(
    kind: Kind,
    matching: Matching,
    said: Message,
    target: Message,
    scales: RunningScales,
    backward: Backward,
) -> dict[str, Tensor]:
    """Add the gradients of what a model is taught to its parameters.

    Args:
        kind: What the model answers with, and learns.
        matching: Weights.
        said: Its message, with a graph to its parameters.
        target: What it should have said.
        scales: Running state of the normalisation, changed in place.
        backward: Runs the backward pass.

    Returns:
        The terms, unweighted, by name.
    """
    terms = matching.terms(kind)
    found = compare(terms, said, target, scales)
    loss = weighted_sum(found, {t.key: t.weight_at(0) for t in terms}) if found else None
    # a model without parameters of its own, an exact one, has nothing to learn
    if loss is not None and loss.requires_grad:
        backward(loss)
    return {name: term.detach() for name, term in found.items()}
