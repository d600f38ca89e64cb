r"""How sensitive a classifier is at an image, in the Fisher metric of its class distribution.

An image moves the class probabilities P; how far apart two such distributions are is measured by
their Fisher information, and pulled back to the pixels this is the metric

.. math:: G = \sum_k \frac{\nabla P_k \nabla P_k^\top}{P_k} = A A^\top, \qquad
    A = \bigl[\nabla P_k / \sqrt{P_k}\bigr]_k .

With :math:`g = \nabla \log P_t = A e_t / \sqrt{P_t}` the influence is
:math:`\mathrm{FI} = g^\top G^+ g`, the largest squared change of :math:`\log P_t` along directions
of unit length in G.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sobolev._types import BatchFn
from lightning_sobolev.functional.derivatives import tape_jet

Images = Float[Tensor, "batch *pixels"]
Labels = Int[Tensor, " batch"]
Classifier = Callable[[Tensor], Float[Tensor, "batch classes"]]


@dataclass(frozen=True, slots=True)
class ClassGradients:
    """Log-probabilities of the classes at some images, and their gradients in the pixels."""

    log_probs: Float[Tensor, "batch classes"]
    gradients: Float[Tensor, "batch classes *pixels"]

    def gram(self) -> Float[Tensor, "batch classes classes"]:
        r"""Return :math:`A^\top A` in float64; its eigenvalues are those of G that are not zero.

        Cost: ``classes ** 2 * pixels`` products an image, where G has ``pixels ** 2`` entries.
        """
        rows = self.gradients.flatten(2).double()
        roots = (self.log_probs.double() / 2).exp()[..., None]
        columns = roots * rows
        gram: Tensor = columns @ columns.mT
        return gram

    def image_influence(
        self, targets: Labels, *, threshold: float | None = None
    ) -> Float[Tensor, " batch"]:
        r"""Return the influence of all pixels together on the log-probability of a class.

        .. math:: \mathrm{FI} = \frac{1}{P_t} e_t^\top \Pi e_t ,

        where :math:`\Pi` projects onto the row space of A; 0 if no singular value is left. Since
        :math:`A \sqrt{P} = 0`, its rank is at most ``classes - 1``, and where it is that, FI is
        :math:`1 / P_t - 1` and says no more than the probability. What differs from this is a
        matter of the singular values of A that are cut off.

        Args:
            targets: The class t of every image.
            threshold: Singular values of A up to this one count as zero. None keeps what the
                precision of the gradients can tell from zero; 1e-3 is what the authors' code cuts,
                which makes images that the network is sure of count less.

        Raises:
            ValueError: If the targets do not fit or ``threshold`` is negative.

        Source:
            Shu and Zhu 2019, Sensitivity Analysis of Deep Neural Networks (arXiv:1901.07152), and
            Shu et al. 2020 (arXiv:2006.03243), section 2; the form with the projection is ours.
        """
        self._check_targets(targets)
        if threshold is not None and threshold < 0:
            raise ValueError(f"threshold must be at least 0 or None, got {threshold}")
        eigenvalues: Tensor
        vectors: Tensor
        eigenvalues, vectors = torch.linalg.eigh(self.gram())
        singular = eigenvalues.clamp_min(0).sqrt()
        limit = self._resolution() * singular[:, -1:] if threshold is None else threshold
        kept = (singular > limit).to(vectors.dtype)
        rows = torch.arange(len(targets), device=targets.device)
        parts = torch.einsum("bkn,bk->bn", vectors, self._beside_null(targets))
        share: Tensor = (kept * parts.square()).sum(-1)
        return (share / self.log_probs.double()[rows, targets].exp()).to(self.log_probs.dtype)

    def pixel_influence(self, targets: Labels) -> Images:
        r"""Return the influence of every pixel by itself on the log-probability of a class.

        .. math:: \mathrm{FI}_p = \frac{(\partial_p \log P_t)^2}{\sum_k (\partial_p P_k)^2 / P_k}

        lies between 0 and the image's influence. It compares what a pixel does to one class with
        what it does to all of them; how much it does is not in it, so a pixel of hardly any effect
        may have a large influence.

        Raises:
            ValueError: If the targets do not fit.

        Source:
            Shu et al. 2020 (arXiv:2006.03243); the one-dimensional case of
            :meth:`image_influence`.
        """
        self._check_targets(targets)
        rows = torch.arange(len(targets), device=targets.device)
        gradients = self.gradients.double()
        probs = self.log_probs.double().exp()
        length = torch.einsum("bk,bk...->b...", probs, gradients.square())
        influence = gradients[rows, targets].square() / length.masked_fill(length == 0, torch.inf)
        return influence.to(self.gradients.dtype)

    def _beside_null(self, targets: Tensor) -> Float[Tensor, "batch classes"]:
        # e_t without its part along the square roots of P, which A maps to zero: where P_t is
        # nearly 1 that part is nearly all, and eigenvectors are too coarse for it.
        log_probs, index = self.log_probs.double(), targets[:, None]
        roots = (log_probs / 2).exp()
        others = log_probs.exp().scatter(1, index, 0.0).sum(1, keepdim=True)
        return (-roots.gather(1, index) * roots).scatter(1, index, others)

    def _resolution(self) -> float:
        # Of a singular value relative to the largest: rounding of the gradients, and of their Gram
        # matrix in float64, which squares them.
        precision = torch.finfo(self.gradients.dtype).eps
        squared = math.sqrt(torch.finfo(torch.float64).eps)
        return self.log_probs.shape[1] * max(precision, squared)

    def _check_targets(self, targets: Tensor) -> None:
        batch, classes = self.log_probs.shape
        if targets.shape != (batch,) or targets.is_floating_point():
            got = f"{list(targets.shape)} of {targets.dtype}"
            raise ValueError(f"targets must be whole numbers of shape [{batch}], got {got}")
        if batch and not (targets.min() >= 0 and targets.max() < classes):
            got = f"{int(targets.min())} to {int(targets.max())}"
            raise ValueError(f"targets must lie in 0 to {classes - 1}, got {got}")


def class_gradients(model: BatchFn, images: Images) -> ClassGradients:
    """Return log-probabilities of every class and their gradients, without a graph.

    One forward pass and one backward pass per class. Assumes that rows are independent: a network
    with batch norm must be in eval mode.

    Raises:
        ValueError: If ``model`` is no classifier: what it returns is not ``[batch, classes]`` with
            two classes or more.

    Example:
        >>> model = torch.nn.Linear(4, 3).double()
        >>> sensitivity = class_gradients(model, torch.rand(2, 4, dtype=torch.float64))
        >>> influence = sensitivity.image_influence(torch.tensor([0, 2]))
        >>> expected = sensitivity.log_probs[[0, 1], [0, 2]].neg().exp() - 1
        >>> torch.allclose(influence, expected)
        True
    """

    def log_probs(x: Tensor) -> Tensor:
        return torch.log_softmax(_logits(model(x), len(x)), dim=-1)

    jet = tape_jet(log_probs, images)
    classes = jet.value.shape[1]
    # [classes, batch, classes]: one class after the other, for every image
    basis = torch.eye(classes, dtype=jet.value.dtype, device=images.device)
    rows = jet.vjp(basis[:, None].expand(-1, len(images), -1))
    return ClassGradients(jet.value.detach(), rows.detach().movedim(0, 1))


def _logits(output: Any, batch: int) -> Tensor:
    is_floating = isinstance(output, Tensor) and output.is_floating_point()
    if is_floating and output.ndim == 2 and len(output) == batch and output.shape[1] >= 2:
        logits: Tensor = output
        return logits
    got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"model must be a classifier that returns logits [{batch}, classes >= 2], got {got}"
    )
