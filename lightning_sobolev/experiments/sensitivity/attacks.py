"""Attacks beside each other: what they reach, how far they go and what they cost."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightning_sobolev._types import BatchFn
from lightning_sobolev.adversarial import GradientAttack, ParticleSwarm
from lightning_sobolev.adversarial.fisher import ClassGradients, class_gradients
from lightning_sobolev.experiments.report.records import Record
from lightning_sobolev.functional.projections import generator_for

log = logging.getLogger(__name__)

PGD_STEPS = 20
_AT_ONCE = 250


@dataclass(frozen=True, slots=True)
class Victims:
    """Images that a network takes for what they are, and the classes it would take next.

    Args:
        images: Pixels in 0..1.
        labels: Their classes.
        targets: The likeliest other classes.
        gradients: Log-probabilities and their gradients.
    """

    images: Float[Tensor, "batch channels height width"]
    labels: Int[Tensor, " batch"]
    targets: Int[Tensor, " batch"]
    gradients: ClassGradients

    def of(self, rows: Tensor) -> "Victims":
        """Return some of them."""
        gradients = ClassGradients(self.gradients.log_probs[rows], self.gradients.gradients[rows])
        return Victims(self.images[rows], self.labels[rows], self.targets[rows], gradients)

    def odds(self) -> Float[Tensor, " batch"]:
        """Return the odds against the right class, 1 / P - 1."""
        log_probs = self.gradients.log_probs.double()
        own = self.labels[:, None]
        # From the other classes: 1 - P is lost to rounding where P is nearly 1.
        others = log_probs.scatter(1, own, -torch.inf).logsumexp(1)
        return (others - log_probs.gather(1, own)[:, 0]).exp()


def right_answers(model: BatchFn, images: Tensor, labels: Tensor) -> Victims:
    """Return the images that are classified correctly, with everything an attack may ask for.

    Args:
        model: Gives logits of pixels.
        images: Pixels in 0..1.
        labels: Their classes.
    """
    parts = [class_gradients(model, part) for part in torch.split(images, _AT_ONCE)]
    log_probs = torch.cat([part.log_probs for part in parts])
    gradients = torch.cat([part.gradients for part in parts])
    rows = (log_probs.argmax(-1) == labels).nonzero()[:, 0]
    others = log_probs[rows].scatter(1, labels[rows][:, None], -torch.inf)
    found = ClassGradients(log_probs[rows], gradients[rows])
    return Victims(images[rows], labels[rows], others.argmax(-1), found)


Attack = Callable[[], Tensor]


def attacks(
    model: nn.Module, victims: Victims, swarm: ParticleSwarm, *, num_pixels: int, seed: int
) -> Iterator[tuple[str, int, Attack]]:
    """Name every attack, its forward and backward passes an image, and how to run it.

    Args:
        model: Gives logits of pixels.
        victims: What is attacked.
        swarm: A swarm over all pixels; radius and passes are those of the others too.
        num_pixels: Pixels of the swarms that may change only some.
        seed: Of everything random.

    Yields:
        The attacks.
    """
    x, labels, radius = victims.images, victims.labels, swarm.radius
    long = swarm.evaluations // 2
    for name, attack in {
        "fgsm": GradientAttack.fgsm(radius),
        "pgd": GradientAttack(radius=radius, steps=PGD_STEPS),
        "pgd_long": GradientAttack(radius=radius, steps=long),
    }.items():
        run = _seeded(attack, model, x, labels, seed)
        yield name, 2 * attack.steps, run
    yield from _of_foolbox(model, victims, radius, repeats=swarm.evaluations, seed=seed)
    chosen = victims.gradients.pixel_influence(victims.targets)
    rows = torch.arange(len(x))
    slope = victims.gradients.gradients[rows, victims.targets].abs()
    drawn = torch.rand(x.shape, generator=generator_for(seed, 1))
    scores = {"influence": chosen, "gradient": slope, "random": drawn}
    yield "swarm", swarm.evaluations, _swarmed(swarm, model, victims, drawn, seed)
    few = replace(swarm, num_pixels=num_pixels)
    choosing = {"influence": 1 + victims.gradients.log_probs.shape[1], "gradient": 2, "random": 0}
    for name, score in scores.items():
        run = _swarmed(few, model, victims, score, seed)
        yield f"swarm_{name}", few.evaluations + choosing[name], run


def _swarmed(
    swarm: ParticleSwarm, model: nn.Module, victims: Victims, scores: Tensor, seed: int
) -> Attack:
    x, targets = victims.images, victims.targets
    return lambda: swarm(model, x, targets, scores=scores, generator=generator_for(seed))


def _seeded(
    attack: GradientAttack, model: nn.Module, images: Tensor, labels: Tensor, seed: int
) -> Attack:
    return lambda: attack(model, images, labels, generator=generator_for(seed))


def _of_foolbox(
    model: nn.Module, victims: Victims, radius: float, *, repeats: int, seed: int
) -> Iterator[tuple[str, int, Attack]]:
    if find_spec("foolbox") is None:
        log.warning("foolbox's attacks are left out: it is missing, install the extra 'bench'")
        return
    from foolbox.attacks import LinfPGD
    from foolbox.attacks.additive_noise import LinfRepeatedAdditiveUniformNoiseAttack
    from foolbox.models.pytorch import PyTorchModel

    network = PyTorchModel(model, bounds=(0, 1), device=victims.images.device)
    # Its default step, a thirtieth of the radius, is weak in so few steps.
    pgd = LinfPGD(rel_stepsize=0.25, steps=PGD_STEPS, random_start=True)
    noise = LinfRepeatedAdditiveUniformNoiseAttack(repeats=repeats)

    def run(attack: Callable[..., tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return attack(network, victims.images, victims.labels, epsilons=radius)[1].detach()

    yield "foolbox_pgd", 2 * PGD_STEPS, lambda: run(pgd)
    yield "foolbox_noise", repeats, lambda: run(noise)


def measured(
    model: nn.Module, victims: Victims, name: str, passes: int, attack: Attack
) -> tuple[Record, Tensor]:
    """Run an attack by the clock of the processor.

    Args:
        model: Gives logits of pixels.
        victims: What is attacked.
        name: What the attack is called.
        passes: Forward and backward passes an image.
        attack: Runs it.

    Returns:
        A line with the share of images that are taken for another class, the mean change of a pixel
        in 255ths and the number of changed pixels of those, and seconds an image; and the images.
    """
    began = time.process_time()
    attacked = attack()
    seconds = time.process_time() - began
    with torch.no_grad():
        fooled = model(attacked).argmax(-1) != victims.labels
    change = (attacked - victims.images)[fooled].abs().flatten(1)
    return {
        "attack": name,
        "passes": passes,
        "success": float(fooled.float().mean()),
        "mean_change": 255 * float(change.mean()) if len(change) else math.nan,
        "changed_pixels": float((change > 1e-6).sum(1).float().mean()) if len(change) else math.nan,
        "seconds": seconds / len(victims.labels),
    }, attacked


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers; NaN without images.

    Args:
        model: Gives logits of pixels.
        images: Pixels in 0..1.
        labels: Their classes.
    """
    with torch.no_grad():
        answers = [model(part).argmax(-1) for part in torch.split(images, 4 * _AT_ONCE)]
    right = torch.cat(answers) == labels if answers else torch.empty(0)
    return float(right.float().mean())
