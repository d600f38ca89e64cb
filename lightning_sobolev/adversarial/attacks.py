r"""Attacks along the gradient of the cross-entropy with respect to the image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_sobolev._checks import require
from lightning_sobolev.adversarial.fisher import Classifier, Images, Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientAttack:
    r"""Projected gradient ascent of the cross-entropy in a maximum-norm ball (PGD).

    .. math::
        x_{i+1} = \Pi\bigl(x_i + \alpha\,\mathrm{sign}\,
        \mathbb{E}_\xi \nabla_x \mathrm{CE}(m_\xi(x_i), y)\bigr)

    where :math:`\Pi` clips to the ball around the image and to ``bounds``, and the expectation over
    the network's own noise :math:`\xi` is a mean over ``draws`` passes. One step of size ``radius``
    without a random start is the fast gradient sign method (:meth:`fgsm`).

    The network is attacked as it is: whether dropout, batch norm and noise layers are active is the
    caller's choice. Its parameters get no gradient. Cost: ``steps * draws`` forward and backward
    passes.

    Args:
        radius: Largest change of a pixel, in units of the image.
        steps: Ascent steps.
        step_size: Change of a pixel in one step; ``radius / 4`` if None.
        random_start: Begins at a uniformly drawn point of the ball.
        draws: Passes over which the gradient of a random network is averaged.
        bounds: Smallest and largest value of a pixel.

    Raises:
        ValueError: If a number is out of its range.

    Source:
        Madry et al. 2018, Towards Deep Learning Models Resistant to Adversarial Attacks
        (arXiv:1706.06083); Goodfellow et al. 2015 (arXiv:1412.6572) for a single step; Athalye et
        al. 2018, Synthesizing Robust Adversarial Examples (arXiv:1707.07397) for the expectation.
    """

    radius: float
    steps: int = 7
    step_size: float | None = None
    random_start: bool = True
    draws: int = 1
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        require(self.radius > 0, "radius", "above 0", self.radius)
        require(self.steps >= 1, "steps", "at least 1", self.steps)
        step_size = self.step_size
        require(step_size is None or step_size > 0, "step_size", "above 0 or None", step_size)
        require(self.draws >= 1, "draws", "at least 1", self.draws)
        require(self.bounds[0] < self.bounds[1], "bounds", "(low, high)", self.bounds)

    @classmethod
    def fgsm(cls, radius: float, **settings: int | tuple[float, float]) -> "GradientAttack":
        """Return the attack in one step of full size from the image itself."""
        return cls(radius=radius, steps=1, step_size=radius, random_start=False, **settings)  # type: ignore[arg-type]

    def __call__(
        self, model: Classifier, images: Images, labels: Labels, *,
        generator: torch.Generator | None = None,
    ) -> Images:  # fmt: skip
        """Return an adversarial image for each image, no farther than ``radius`` from it.

        ``model`` gives logits, of which those of ``labels`` are to fall; ``generator``, on the CPU,
        draws the random start.

        Raises:
            ValueError: If an image lies outside ``bounds`` or the labels do not fit.
        """
        low, high = self.bounds
        inside = images.numel() == 0 or (images.min() >= low and images.max() <= high)
        require(bool(inside), "images", f"within bounds {self.bounds}", "values outside")
        fits = labels.shape == images.shape[:1]
        require(fits, "labels", f"of shape [{len(images)}]", list(labels.shape))
        floor = (images - self.radius).clamp_min(low)
        ceiling = (images + self.radius).clamp_max(high)
        step = self.radius / 4 if self.step_size is None else self.step_size
        attacked = images.clone()
        if self.random_start:
            share = torch.rand(images.shape, generator=generator, dtype=images.dtype)
            attacked = floor + share.to(images.device) * (ceiling - floor)
        for _ in range(self.steps):
            ascent = self._ascent(model, attacked, labels)
            attacked = torch.clamp(attacked + step * ascent.sign(), floor, ceiling)
        return attacked

    def _ascent(self, model: Classifier, images: Tensor, labels: Tensor) -> Images:
        with torch.enable_grad():
            leaf = images.detach().requires_grad_()
            # A sum: every image is attacked by itself.
            losses = [
                cross_entropy(model(leaf), labels, reduction="sum") for _ in range(self.draws)
            ]
            (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), leaf)
        return gradient
