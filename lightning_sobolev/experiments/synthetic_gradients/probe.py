"""How near the models come to the truth, measured with a backward pass through the whole network.

Decoupled training never needs the true gradient; it is computed here to look at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.messages import Message, speak
from lightning_sobolev.metrics import DerivativeCosine, ValueNMSE


@dataclass(frozen=True, slots=True)
class Nearness:
    """The message of a model beside the true one.

    Args:
        said: What the model says.
        true: The true loss and gradient at the same activation.
    """

    said: Message
    true: Message

    def numbers(self) -> Mapping[str, float]:
        """Return ``gradient_cosine``, ``norm_ratio`` and, of a loss model, ``value_nmse``.

        The cosine is the mean over rows, the ratio is that of the norms over all rows, the error
        is divided by the variance of the true losses (1: as good as their mean).
        """
        cosine = DerivativeCosine()
        cosine.update(self.said.gradient[None], self.true.gradient[None])
        ratio = self.said.gradient.norm() / self.true.gradient.norm()
        numbers = {"gradient_cosine": float(cosine.compute()), "norm_ratio": float(ratio)}
        if self.said.value is not None and self.true.value is not None:
            error = ValueNMSE()
            error.update(self.said.value, self.true.value)
            numbers["value_nmse"] = float(error.compute())
        return numbers


def probe(
    sections: Sequence[nn.Module],
    models: Sequence[nn.Module],
    x: Float[Tensor, "batch *in"],
    y: Int[Tensor, " batch"],
    kind: Kind,
) -> dict[int, Nearness]:
    """Compare every model's message with the true one.

    One forward and one backward pass of the network, and what the models take. Parameters get no
    gradient. Works inside ``no_grad`` and ``inference_mode``. Sections should be in eval mode.

    Args:
        sections: The sections, the lowest first.
        models: A model for every cut; without any there is nothing to compare.
        x: Inputs of the network.
        y: Their classes.
        kind: What the models answer with.

    Returns:
        The comparison, by cut.
    """
    if not models:
        return {}
    with torch.inference_mode(False), torch.enable_grad():
        h, labels = sections[0](x.clone()), y.clone()
        activations = []
        for section in sections[1:]:
            activations.append(h)
            h = section(h)
        losses = cross_entropy(h, labels, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), activations)
        pairs = zip(models, activations, gradients, strict=True)
        return {
            cut: Nearness(
                speak(model, kind, at, labels).detach(), Message(gradient, losses.detach())
            )
            for cut, (model, at, gradient) in enumerate(pairs, start=1)
        }
