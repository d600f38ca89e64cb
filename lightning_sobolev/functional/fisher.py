"""Cotangents in the metric of a distribution: which outputs of a policy count, and how much."""

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev.functional.projections import draw

FISHER = "fisher"


def fisher(
    log_probs: Float[Tensor, "batch *out"], *, num_projections: int, generator: torch.Generator
) -> Float[Tensor, "proj batch *out"]:
    r"""Return cotangents of log-probabilities whose covariance is the distribution itself.

    With w from :func:`draw`'s sphere, :math:`u_c = \sqrt{p_c}\, w_c` has
    :math:`E[u u^\top] = \mathrm{diag}(p)`, so that for the Jacobian J of
    :math:`\log p`

    .. math:: E |u^\top J|^2 = \sum_c p_c\, |\nabla_x \log p_c|^2 ,

    the trace of the Fisher information of the distribution, pulled back to the input: an action
    counts as much as it is taken. A one-hot action drawn from p has the same covariance and more
    variance.

    Source:
        Amari 1998, Natural Gradient Works Efficiently in Learning (the metric); the estimator is
        ours.
    """
    directions = draw(
        "sphere", log_probs.shape, num_projections=num_projections, generator=generator,
        dtype=log_probs.dtype, device=log_probs.device,
    )  # fmt: skip
    return directions * (log_probs.detach() / 2).exp()
