"""How near predictions come to the truth, measured with a backward pass of the whole network.

Decoupled training never needs the true gradient; it is computed here to look at.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sobolev.experiments.synthetic_gradients.step import Stage
from lightning_sobolev.metrics import DerivativeCosine, ValueNMSE


def gradient_error(
    stages: Sequence[Stage], x: Float[Tensor, "batch *in"], y: Int[Tensor, " batch"]
) -> dict[int, dict[str, float]]:
    """Compare the prediction of every model with the truth.

    One forward and one backward pass of the network, and what the models take. Parameters get no
    gradient. Works inside ``no_grad`` and ``inference_mode``. Sections should be in eval mode.
    Returns by cut ``gradient_cosine``, the mean over rows; ``norm_ratio``, that of the norms over
    all rows; and of loss models ``value_nmse``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        h, y = stages[0].section(x.clone()), y.clone()
        activations = []
        for stage in stages[1:]:
            activations.append(h)
            h = stage.section(h)
        losses = cross_entropy(h, y, reduction="none")
        gradients = torch.autograd.grad(losses.sum(), activations)
        errors = {}
        for cut, (at, true) in enumerate(zip(activations, gradients, strict=True), start=1):
            predicted = stages[cut - 1].predict(at, y, create_graph=False)
            slope, cosine = predicted.gradient.detach(), DerivativeCosine()
            cosine.update(slope[None], true[None])
            ratio = slope.norm() / true.norm()
            errors[cut] = {"gradient_cosine": float(cosine.compute()), "norm_ratio": float(ratio)}
            if predicted.value is not None:
                nmse = ValueNMSE()
                nmse.update(predicted.value.detach(), losses.detach())
                errors[cut]["value_nmse"] = float(nmse.compute())
    return errors
