r"""Adversarial images by a particle swarm that moves a few chosen pixels and needs no gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.adversarial.fisher import Classifier, Images, Labels, class_gradients

# Of the wanted class against the size of the change, in 255ths of a pixel's range (the authors').
_CLASS_WEIGHT = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticleSwarm:
    r"""A particle swarm for every image, all images at once.

    A particle is a change :math:`\delta` of the chosen pixels. It is drawn towards the best place
    it has been to itself and the best place that any particle of its image has been to,

    .. math:: v \leftarrow w v + c_1 r_1 (\delta^{own} - \delta) + c_2 r_2 (\delta^{all} - \delta),
        \qquad \delta \leftarrow \delta + v,

    with fresh uniform :math:`r_1, r_2` for every coordinate, and is reflected where it would leave
    the ball or the bounds. What is minimised is :math:`10^7 (\max_k P_k - P_t) + 255\,|\delta|_1`:
    first the target class t has to win, then the change has to be small. With ``wanted`` it is
    :math:`10^7 |P_t - \mathrm{wanted}| + |\delta|_1`.

    Cost: ``evaluations`` forward passes an image, and for the choice of the pixels one more and as
    many backward passes as there are classes. Memory: ``particles`` copies of every image.

    Args:
        radius: Largest change of a pixel, in units of the image.
        num_pixels: Pixels that are changed, those of the largest pixel influence on the target;
            all if None.
        wanted: Probability that the target class is to have; None for the likeliest class with the
            smallest change.
        particles: Particles of an image.
        iterations: Moves of every particle.
        inertia: w.
        own: c_1.
        shared: c_2.
        max_speed: Largest move of a pixel, as a share of the width of its range.
        bounds: Smallest and largest value of a pixel.

    Raises:
        ValueError: If a number is out of its range.

    Source:
        Shu et al. 2020, Adversarial Image Generation and Training for Deep Neural Networks
        (arXiv:2006.03243), section 3; Kennedy and Eberhart 1995 for the swarm. Where the authors'
        code differs is listed in docs/decisions.md.
    """

    radius: float
    num_pixels: int | None = None
    wanted: float | None = None
    particles: int = 200
    iterations: int = 10
    inertia: float = 0.6
    own: float = 2.0
    shared: float = 2.0
    max_speed: float = 0.05
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        require(self.radius > 0, "radius", "above 0", self.radius)
        few = self.num_pixels is None or self.num_pixels >= 1
        require(few, "num_pixels", "at least 1 or None", self.num_pixels)
        probable = self.wanted is None or 0 <= self.wanted <= 1
        require(probable, "wanted", "a probability or None", self.wanted)
        require(self.particles >= 1, "particles", "at least 1", self.particles)
        require(self.iterations >= 1, "iterations", "at least 1", self.iterations)
        for name in ("inertia", "own", "shared"):
            require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        require(0 < self.max_speed <= 1, "max_speed", "in (0, 1]", self.max_speed)
        require(self.bounds[0] < self.bounds[1], "bounds", "(low, high)", self.bounds)

    @property
    def evaluations(self) -> int:
        """Forward passes an image, without the choice of the pixels."""
        return self.particles * (self.iterations + 1)

    @torch.no_grad()
    def __call__(
        self, model: Classifier, images: Images, targets: Labels, *,
        scores: Images | None = None, generator: torch.Generator | None = None,
    ) -> Images:  # fmt: skip
        """Return the best image that each swarm has found.

        It is no farther than ``radius`` from the given one, in ``num_pixels`` pixels; whether the
        target was reached is for the caller to see.

        Args:
            model: Gives the logits of a batch.
            images: Images within ``bounds``.
            targets: The class that every image is to be taken for.
            scores: Another measure than the pixel influence; pixels of large scores are changed.
            generator: Source of randomness, on the CPU.

        Raises:
            ValueError: If an image lies outside ``bounds``, or targets, scores or number of pixels
                do not fit.
        """
        low, high = self.bounds
        inside = images.numel() == 0 or (images.min() >= low and images.max() <= high)
        require(bool(inside), "images", f"within bounds {self.bounds}", "values outside")
        flat = images.flatten(1)
        chosen = self._chosen(model, images, targets, scores)
        start = flat.gather(1, chosen)
        floor = ((start - self.radius).clamp_min(low) - start)[:, None]
        ceiling = ((start + self.radius).clamp_max(high) - start)[:, None]

        def fitness(change: Tensor) -> Tensor:
            tried = _changed(flat, chosen, change).reshape(-1, *images.shape[1:])
            probs = torch.softmax(model(tried), -1).reshape(*change.shape[:2], -1)
            return self._fitness(probs, change, targets)

        best = self._search(fitness, floor, ceiling, generator)
        # Rounding of start + change must not leave the bounds.
        return _changed(flat, chosen, best).reshape(images.shape).clamp(low, high)

    def _chosen(
        self, model: Classifier, images: Tensor, targets: Tensor, scores: Tensor | None
    ) -> Int[Tensor, "batch chosen"]:
        available = images[0].numel() if len(images) else 0
        count = available if self.num_pixels is None else self.num_pixels
        require(count <= available, "num_pixels", f"at most {available}", self.num_pixels)
        if scores is None:
            scores = class_gradients(model, images).pixel_influence(targets)
        fits = scores.shape == images.shape
        require(fits, "scores", f"of shape {list(images.shape)}", list(scores.shape))
        return scores.flatten(1).topk(count).indices

    def _fitness(
        self, probs: Float[Tensor, "batch particles classes"], change: Tensor, targets: Labels
    ) -> Float[Tensor, "batch particles"]:
        index = targets[:, None, None].expand(-1, probs.shape[1], 1)
        target = probs.gather(2, index).squeeze(2)
        size = change.abs().sum(-1)
        if self.wanted is not None:
            return _CLASS_WEIGHT * (target - self.wanted).abs() + size
        return _CLASS_WEIGHT * (probs.amax(-1) - target) + 255 * size

    def _search(
        self, fitness: Callable[[Tensor], Tensor], floor: Tensor, ceiling: Tensor,
        generator: torch.Generator | None,
    ) -> Float[Tensor, "batch 1 chosen"]:  # fmt: skip
        shape = (len(floor), self.particles, floor.shape[2])

        def draw() -> Tensor:
            return torch.rand(shape, generator=generator, dtype=floor.dtype).to(floor.device)

        width = ceiling - floor
        limit = self.max_speed * width
        place = floor + draw() * width
        speed = (2 * draw() - 1) * limit
        own, own_fitness = place, fitness(place)
        for _ in range(self.iterations):
            speed = (
                self.inertia * speed
                + self.own * draw() * (own - place)
                + self.shared * draw() * (_best(own, own_fitness) - place)
            ).clamp(-limit, limit)
            place, speed = reflected(place + speed, speed, floor, ceiling)
            found = fitness(place)
            better = found < own_fitness
            own = torch.where(better[..., None], place, own)
            own_fitness = torch.where(better, found, own_fitness)
        return _best(own, own_fitness)


def _best(places: Tensor, fitness: Tensor) -> Float[Tensor, "batch 1 chosen"]:
    # The best of the own best places is the best place that anybody has been to.
    index = fitness.argmin(1)[:, None, None].expand(-1, 1, places.shape[-1])
    return places.gather(1, index)


def reflected(
    place: Float[Tensor, "*shape"], speed: Float[Tensor, "*shape"], floor: Tensor, ceiling: Tensor
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Mirror at the walls what has gone beyond them by no more than the distance between them."""
    outside = (place < floor) | (place > ceiling)
    mirrored = torch.where(place < floor, 2 * floor - place, 2 * ceiling - place)
    # clamped: a mirrored number is rounded
    inside = torch.where(outside, mirrored, place).clamp(floor, ceiling)
    return inside, torch.where(outside, -speed, speed)


def _changed(
    flat: Tensor, chosen: Tensor, change: Float[Tensor, "batch particles chosen"]
) -> Float[Tensor, "batch particles pixels"]:
    particles = change.shape[1]
    copies = flat[:, None].expand(-1, particles, -1)
    return copies.scatter_add(2, chosen[:, None].expand(-1, particles, -1), change)
