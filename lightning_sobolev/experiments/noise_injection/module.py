"""Train a classifier against attacks, with noise on its weights or without."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_sobolev._checks import require
from lightning_sobolev.adversarial import GradientAttack
from lightning_sobolev.experiments.common.module import NetModule
from lightning_sobolev.experiments.common.optimizers import OptimizerFactory, SchedulerFactory
from lightning_sobolev.layers import (
    NoiseInjection,
    inject_noise,
    noise_penalty,
    switch_evaluation_noise,
)

NOISES = ("none", "white", "colored")


class AdversarialModule(NetModule):
    r"""Half the cross-entropy of attacked images and half that of clean ones.

    A batch is ``{"x": [batch, *pixels], "y": int64 [batch]}`` with pixels in [0, 1]. The attack of
    training has seven steps and sees the network as it trains, noise included.

    Logs ``train/loss``; ``val/accuracy`` and ``val/attacked_accuracy`` (the attack of training); at
    test time the accuracy on clean images and under the fast gradient sign method and projected
    gradients with 20 steps: ``test/accuracy``, ``test/fgsm_accuracy``, ``test/pgd_accuracy``. With
    noise these are means over ``draws`` draws of it, and there are also
    ``test/expected_pgd_accuracy``, where each step of the attack averages over as many draws,
    ``test/quiet_accuracy`` and ``test/quiet_pgd_accuracy``, where noise is off for the attack and
    the answer, ``test/noise_level``, the noise's standard deviation in those of the weights, and
    ``test/noise_colour``, the share of its variance that is correlated, both means over the layers.

    Args:
        net: The classifier; noise is put into it.
        optimizer: Makes the optimizer.
        scheduler: Makes the schedule of the learning rate.
        noise: ``"none"``, ``"white"`` or ``"colored"``, on the weights of every layer.
        radius: Largest change of a pixel.
        defended: False trains on clean images alone.
        rank: Correlated directions of colored noise.
        penalty: Factor of :func:`~lightning_sobolev.layers.noise_penalty`.
        draws: Draws of the noise at test time.

    Source:
        Zheltonozhskii et al. 2020 (arXiv:2003.02188), after their released code.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        noise: Literal["none", "white", "colored"] = "colored",
        radius: float = 0.1,
        defended: bool = True,
        rank: int = 5,
        penalty: float = 1e-3,
        draws: int = 10,
    ) -> None:
        super().__init__(net, optimizer, scheduler)
        require(noise in NOISES, "noise", f"one of {NOISES}", noise)
        require(penalty >= 0, "penalty", "at least 0", penalty)
        self.noisy = noise != "none"
        self.attack = GradientAttack(radius=radius)
        strong = GradientAttack(radius=radius, steps=20)
        self.attacks = {"fgsm": GradientAttack.fgsm(radius), "pgd": strong}
        if self.noisy:
            inject_noise(net, rank=rank, color=noise == "colored")
            self.attacks["expected_pgd"] = replace(strong, draws=draws)
        self.defended, self.penalty = defended, penalty
        self.draws = draws if self.noisy else 1

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        """Return the loss."""
        x, y = batch["x"], batch["y"]
        loss = cross_entropy(self(x), y)
        if self.defended:
            attacked = self.attack(self.net, x, y)
            loss = 0.5 * loss + 0.5 * cross_entropy(self(attacked), y)
        if self.noisy:
            loss = loss + self.penalty * noise_penalty(self.net)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        """Measure accuracy on clean and attacked images."""
        self._log_accuracies("val/", batch, {"attacked": self.attack})

    def test_step(self, batch: Mapping[str, Tensor], *_: int) -> None:
        """Measure accuracy under every attack, with noise and without."""
        self._log_accuracies("test/", batch, self.attacks)
        if not self.noisy:
            return
        switch_evaluation_noise(self.net, on=False)
        try:
            self._log_accuracies("test/quiet_", batch, {"pgd": self.attacks["pgd"]})
        finally:
            switch_evaluation_noise(self.net, on=True)
        level, color = level_and_color(self.net)
        found = {"test/noise_level": level, "test/noise_colour": color}
        self.log_dict(found, batch_size=len(batch["y"]))

    def _log_accuracies(
        self, prefix: str, batch: Mapping[str, Tensor], attacks: Mapping[str, GradientAttack]
    ) -> None:
        # A trainer may evaluate in inference mode, whose tensors no attack can differentiate.
        with torch.inference_mode(False), torch.no_grad():
            x, y = batch["x"].clone(), batch["y"].clone()
            found = {"accuracy": self._accuracy(x, y)}
            for name, attack in attacks.items():
                found[f"{name}_accuracy"] = self._accuracy(attack(self.net, x, y), y)
        named = {f"{prefix}{name}": accuracy for name, accuracy in found.items()}
        self.log_dict(named, batch_size=len(y))

    def _accuracy(self, x: Tensor, y: Int[Tensor, " batch"]) -> Tensor:
        logits = torch.cat([self(x) for _ in range(self.draws)])
        classes = logits.shape[-1]
        return multiclass_accuracy(logits, y.repeat(self.draws), classes, average="micro")


def level_and_color(module: nn.Module) -> tuple[Tensor, Tensor]:
    r"""Say how much noise a network has learned to have, and how much of it is correlated."""
    with torch.no_grad():
        noises = [part for part in module.modules() if isinstance(part, NoiseInjection)]
        variances = torch.stack([noise.variance.mean() for noise in noises])
        own = torch.stack([noise.alpha.square().mean() for noise in noises])
        return variances.sqrt().mean(), (1 - own / variances).mean()
