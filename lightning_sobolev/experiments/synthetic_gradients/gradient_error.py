"""How near predictions come to the truth, measured with a backward pass of the whole network.

Decoupled training never needs the true gradient; it is computed here to look at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.synthetic_gradients.kinds import Kind
from lightning_sobolev.experiments.synthetic_gradients.prediction import LossGradient, predict
from lightning_sobolev.metrics import DerivativeCosine, ValueNMSE


def gradient_error(
    sections: Sequence[nn.Module],
    models: Sequence[nn.Module],
    x: Float[Tensor, "batch *in"],
    y: Int[Tensor, " batch"],
    kind: Kind,
) -> dict[int, dict[str, float]]:
    """Compare the prediction of every model with the truth.

    One forward and one backward pass of the network, and what the models take. Parameters get no
    gradient. Works inside ``no_grad`` and ``inference_mode``. Sections should be in eval mode.

    Args:
        sections: The sections, the lowest first.
        models: A model for every cut; without any there is nothing to compare.
        x: Inputs of the network.
        y: Their classes.
        kind: What the models predict.

    Returns:
        By cut: ``gradient_cosine``, the mean over rows; ``norm_ratio``, that of the norms over all
        rows; and of loss models ``value_nmse``, the squared error divided by the variance of the
        true losses (1: as good as their mean).
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
        errors = {}
        for cut, (model, at) in enumerate(zip(models, activations, strict=True), start=1):
            predicted = predict(model, kind, at, labels).detach()
            errors[cut] = _compared(predicted, LossGradient(gradients[cut - 1], losses.detach()))
    return errors


def _compared(predicted: LossGradient, true: LossGradient) -> dict[str, float]:
    cosine = DerivativeCosine()
    cosine.update(predicted.gradient[None], true.gradient[None])
    ratio = predicted.gradient.norm() / true.gradient.norm()
    errors = {"gradient_cosine": float(cosine.compute()), "norm_ratio": float(ratio)}
    if predicted.value is not None and true.value is not None:
        nmse = ValueNMSE()
        nmse.update(predicted.value, true.value)
        errors["value_nmse"] = float(nmse.compute())
    return errors
