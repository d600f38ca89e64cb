"""Attacks beside each other: what they reach, how far they go and what they cost."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev._types import BatchFn
from lightning_sobolev.adversarial import GradientAttack, ParticleSwarm
from lightning_sobolev.adversarial.fisher import ClassGradients, class_gradients
from lightning_sobolev.functional.projections import generator_for

log = logging.getLogger(__name__)

PGD_STEPS = 20
_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Examples:
    """Images, pixels in 0..1, that a network classifies correctly; ``targets`` come next."""

    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]
    targets: Int[Tensor, " batch"]
    gradients: ClassGradients

    @classmethod
    def of(cls, model: BatchFn, images: Tensor, labels: Tensor) -> "Examples":
        """Return the images that are classified correctly."""
        parts = [class_gradients(model, part) for part in torch.split(images, _AT_ONCE)]
        log_probs = torch.cat([part.log_probs for part in parts])
        gradients = torch.cat([part.gradients for part in parts])
        others = log_probs.scatter(1, labels[:, None], -torch.inf).argmax(-1)
        found = cls(images, labels, others, ClassGradients(log_probs, gradients))
        return found[(log_probs.argmax(-1) == labels).nonzero()[:, 0]]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor | slice) -> "Examples":
        gradients = ClassGradients(self.gradients.log_probs[rows], self.gradients.gradients[rows])
        return Examples(self.images[rows], self.labels[rows], self.targets[rows], gradients)

    def most_vulnerable(self, count: int) -> "Examples":
        """Return those of the largest influence on their own class, at most ``count``."""
        influence = self.gradients.image_influence(self.labels)
        return self[influence.topk(min(count, len(self))).indices]

    def odds(self) -> Float[Tensor, " batch"]:
        """Return the odds against the right class, 1 / P - 1."""
        log_probs, own = self.gradients.log_probs.double(), self.labels[:, None]
        # From the other classes: 1 - P is lost to rounding where P is nearly 1.
        others = log_probs.scatter(1, own, -torch.inf).logsumexp(1)
        return (others - log_probs.gather(1, own)[:, 0]).exp()

    def target_slope(self) -> Float[Tensor, "batch channels height width"]:
        """Return the size of the gradient of the target's log-probability."""
        return self.gradients.gradients[torch.arange(len(self)), self.targets].abs()


class Attack(NamedTuple):
    """An attack: its name, its forward and backward passes an image, and how to run it."""

    name: str
    passes: int
    run: Callable[[], Tensor]


def attacks(
    model: nn.Module, examples: Examples, swarm: ParticleSwarm, *, num_pixels: int, seed: int
) -> Iterator[Attack]:
    """Plan every attack, with the radius and the passes of a swarm over all pixels."""
    x, radius, passes = examples.images, swarm.radius, swarm.evaluations

    def by_gradient(name: str, attack: GradientAttack) -> Attack:
        run = partial(attack, model, x, examples.labels)
        return Attack(name, 2 * attack.steps, lambda: run(generator=generator_for(seed)))

    def by_swarm(name: str, swarm: ParticleSwarm, scores: Tensor, choosing: int) -> Attack:
        run = partial(swarm, model, x, examples.targets, scores=scores)
        return Attack(name, passes + choosing, lambda: run(generator=generator_for(seed)))

    yield by_gradient("fgsm", GradientAttack.fgsm(radius))
    yield by_gradient("pgd", GradientAttack(radius=radius, steps=PGD_STEPS))
    yield by_gradient("pgd_long", GradientAttack(radius=radius, steps=passes // 2))
    yield from _of_foolbox(model, examples, radius, repeats=passes, seed=seed)
    influence = examples.gradients.pixel_influence(examples.targets)
    drawn = torch.rand(x.shape, generator=generator_for(seed, 1))
    few, classes = replace(swarm, num_pixels=num_pixels), examples.gradients.log_probs.shape[1]
    yield by_swarm("swarm", swarm, drawn, 0)
    yield by_swarm("swarm_influence", few, influence, 1 + classes)
    yield by_swarm("swarm_gradient", few, examples.target_slope(), 2)
    yield by_swarm("swarm_random", few, drawn, 0)


def _of_foolbox(
    model: nn.Module, examples: Examples, radius: float, *, repeats: int, seed: int
) -> Iterator[Attack]:
    if find_spec("foolbox") is None:
        log.warning("foolbox's attacks are left out: it is missing, install the extra 'bench'")
        return
    from foolbox.attacks import LinfPGD
    from foolbox.attacks.additive_noise import LinfRepeatedAdditiveUniformNoiseAttack
    from foolbox.models.pytorch import PyTorchModel

    network = PyTorchModel(model, bounds=(0, 1), device=examples.images.device)
    # Its default step, a thirtieth of the radius, is weak in so few steps.
    pgd = LinfPGD(rel_stepsize=0.25, steps=PGD_STEPS, random_start=True)
    noise = LinfRepeatedAdditiveUniformNoiseAttack(repeats=repeats)

    def run(attack: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return attack(network, examples.images, examples.labels, epsilons=radius)[1].detach()

    yield Attack("foolbox_pgd", 2 * PGD_STEPS, lambda: run(pgd))
    yield Attack("foolbox_noise", repeats, lambda: run(noise))


def measured(model: nn.Module, examples: Examples, attack: Attack) -> tuple[dict[str, Any], Tensor]:
    """Run an attack by the clock of the processor; return its row and what it has made."""
    began, attacked = time.process_time(), attack.run()
    seconds = time.process_time() - began
    with torch.no_grad():
        fooled = model(attacked).argmax(-1) != examples.labels
    change = (attacked - examples.images)[fooled].abs().flatten(1)  # of the successes alone
    row = {
        "attack": attack.name,
        "passes": attack.passes,
        "success": float(fooled.float().mean()),
        "mean_change": 255 * float(change.mean()),  # NaN without a success
        "changed_pixels": float((change > 1e-6).sum(1).float().mean()),
        "seconds": seconds / len(examples),
    }
    return row, attacked
