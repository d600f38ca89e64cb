"""Training that goes on with adversarial images among the others, and what it is good for."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_sobolev.adversarial import GradientAttack, ParticleSwarm
from lightning_sobolev.experiments.report.records import Record
from lightning_sobolev.experiments.sensitivity.attacks import (
    PGD_STEPS,
    Victims,
    accuracy,
    right_answers,
)
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import ShuffledBatches

_NUM_ATTACKED_BY_PGD = 250


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images with their classes.

    Args:
        images: Pixels in 0..1.
        labels: The classes.
    """

    images: Float[Tensor, "pictures channels height width"]
    labels: Int[Tensor, " pictures"]

    def joined(self, other: "Pictures") -> "Pictures":
        """Return these and the others."""
        return Pictures(
            torch.cat([self.images, other.images]), torch.cat([self.labels, other.labels])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Defence:
    """How training goes on.

    Args:
        steps: Steps on batches of 128.
        lr: Learning rate of the first step; it falls to zero along half a cosine.
        seed: Of the order.
    """

    steps: int
    lr: float = 1e-3
    seed: int = 0

    def __call__(self, model: nn.Module, pictures: Pictures) -> nn.Module:
        """Return a trained copy.

        Args:
            model: Gives logits of pixels.
            pictures: What it is trained on.
        """
        trained = copy.deepcopy(model).requires_grad_(True).train()
        optimizer = Adam(trained.parameters(), lr=self.lr)
        schedule = CosineAnnealingLR(optimizer, T_max=self.steps)
        for rows in ShuffledBatches(len(pictures.labels), 128, self.steps, seed=self.seed):
            optimizer.zero_grad()
            loss = cross_entropy(trained(pictures.images[rows]), pictures.labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return trained.requires_grad_(False).eval()


def successes(
    model: nn.Module, victims: Victims, swarm: ParticleSwarm, *, seed: int
) -> dict[str, Pictures]:
    """Attack images and keep what makes the network err.

    Args:
        model: Gives logits of pixels.
        victims: What is attacked.
        swarm: One attack; the other is projected gradient ascent of the same radius.
        seed: Of everything random.

    Returns:
        Adversarial images with the right labels, by attack.
    """
    pgd = GradientAttack(radius=swarm.radius, steps=PGD_STEPS)
    x, labels = victims.images, victims.labels
    made = {
        "swarm": swarm(model, x, victims.targets, generator=generator_for(seed, 2)),
        "pgd": pgd(model, x, labels, generator=generator_for(seed, 2)),
    }
    kept = {}
    with torch.no_grad():
        for name, attacked in made.items():
            fooled = model(attacked).argmax(-1) != labels
            kept[name] = Pictures(attacked[fooled], labels[fooled])
    return kept


def examined(
    model: nn.Module,
    test: Pictures,
    earlier: Pictures,
    swarm: ParticleSwarm,
    *,
    num_attacked: int,
    seed: int,
) -> Record:
    """Measure accuracies, against fresh attacks on this very network too.

    Args:
        model: Gives logits of pixels.
        test: Test pictures.
        earlier: Adversarial images that were made for the network before its defence.
        swarm: Attacks the first ``num_attacked`` test pictures that are classified correctly.
        num_attacked: How many.
        seed: Of everything random.

    Returns:
        A line of accuracies; that under the swarm counts wrong answers before it as well.
    """
    x, labels = test.images[:_NUM_ATTACKED_BY_PGD], test.labels[:_NUM_ATTACKED_BY_PGD]
    pgd = GradientAttack(radius=swarm.radius, steps=PGD_STEPS)
    attacked = pgd(model, x, labels, generator=generator_for(seed, 3))
    right = right_answers(model, x, labels)
    victims = right.of(torch.arange(min(num_attacked, len(right.labels))))
    swarmed = swarm(model, victims.images, victims.targets, generator=generator_for(seed, 3))
    share = len(right.labels) / len(labels)
    return {
        "clean_accuracy": accuracy(model, test.images, test.labels),
        "pgd_accuracy": accuracy(model, attacked, labels),
        "swarm_accuracy": share * accuracy(model, swarmed, victims.labels),
        "earlier_accuracy": accuracy(model, earlier.images, earlier.labels),
    }
