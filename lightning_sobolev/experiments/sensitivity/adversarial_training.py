"""Training that goes on with adversarial images among the others, and what it is good for."""

import copy
import math
from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_sobolev.adversarial import GradientAttack, ParticleSwarm
from lightning_sobolev.experiments.images.image_set import Labeled
from lightning_sobolev.experiments.images.module import ClassificationModule
from lightning_sobolev.experiments.sensitivity.attacks import PGD_STEPS, Examples
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import ResumableLoader, ShuffledBatches, Table


def trained_on(model: nn.Module, images: Labeled, steps: int, *, seed: int) -> nn.Module:
    """Return a copy whose training went on, with Adam and a rate that falls to zero."""
    net = copy.deepcopy(model).requires_grad_(True).train()
    schedule = partial(CosineAnnealingLR, T_max=steps)
    module = ClassificationModule(net, partial(Adam, lr=1e-3), schedule)
    table = Table({"x": images.images, "y": images.labels})
    batches = ShuffledBatches(len(table), 128, steps, seed=seed)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = ResumableLoader(table, batches)
    with torch.enable_grad():
        trainer.fit(module, loader, loader)  # no batch validates, but none at all is warned of
    return module.net.requires_grad_(False).eval()


def successes(
    model: nn.Module, examples: Examples, swarm: ParticleSwarm, *, seed: int
) -> dict[str, Labeled]:
    """Attack images by a swarm and by gradients; keep what makes the network err."""
    x, labels = examples.images, examples.labels
    pgd = GradientAttack(radius=swarm.radius, steps=PGD_STEPS)
    made = {
        "swarm": swarm(model, x, examples.targets, generator=generator_for(seed, 2)),
        "pgd": pgd(model, x, labels, generator=generator_for(seed, 2)),
    }
    return {name: errors(model, images, labels) for name, images in made.items()}


def errors(model: nn.Module, images: Tensor, labels: Tensor) -> Labeled:
    """Return the images that are taken for another class, with the right labels."""
    with torch.no_grad():
        wrong = model(images).argmax(-1) != labels
    return Labeled(images[wrong], labels[wrong])


def examined(
    model: nn.Module,
    test: Labeled,
    earlier: Labeled,
    swarm: ParticleSwarm,
    *,
    num_attacked: int,
    seed: int,
) -> dict[str, float]:
    """Measure accuracies: plain, under fresh attacks, and on images made for an earlier network."""
    x, labels = test.images[:250], test.labels[:250]
    pgd = GradientAttack(radius=swarm.radius, steps=PGD_STEPS)
    attacked = pgd(model, x, labels, generator=generator_for(seed, 3))
    right = Examples.of(model, x, labels)
    some = right[:num_attacked]
    swarmed = swarm(model, some.images, some.targets, generator=generator_for(seed, 3))
    return {
        "clean_accuracy": accuracy(model, *test),
        "pgd_accuracy": accuracy(model, attacked, labels),
        "swarm_accuracy": len(right) / len(labels) * accuracy(model, swarmed, some.labels),
        "earlier_accuracy": accuracy(model, *earlier),
    }


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of right answers; NaN without images."""
    if len(labels) == 0:
        return math.nan
    with torch.no_grad():
        logits = torch.cat([model(part) for part in torch.split(images, 1000)])
    return float(multiclass_accuracy(logits, labels, logits.shape[-1], average="micro"))
