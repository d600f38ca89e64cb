"""Train a classifier against attacks, with noise on its weights or without."""

from collections.abc import Mapping
from typing import Literal

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_sobolev.adversarial import GradientAttack
from lightning_sobolev.experiments.run.optimizers import cosine_decay
from lightning_sobolev.layers import (
    NoiseInjection,
    inject_noise,
    noise_penalty,
    switch_evaluation_noise,
)

NOISES = ("none", "white", "coloured")
_TEST_STEPS = 20


class AdversarialModule(pl.LightningModule):
    r"""Half the cross-entropy of attacked images and half that of clean ones.

    A batch is ``{"x": [batch, *pixels], "y": int64 [batch]}`` with pixels in [0, 1]. The attack of
    training has seven steps and sees the network as it trains, noise included.

    Logs ``train/loss``; ``val/accuracy`` and ``val/attacked_accuracy`` (the attack of training); at
    test time the accuracy on clean images and under the fast gradient sign method and projected
    gradients with 20 steps: ``test/accuracy``, ``test/fgsm_accuracy``, ``test/pgd_accuracy``. With
    noise these are means over ``draws`` draws of it, and there are also
    ``test/expected_pgd_accuracy``, where each step of the attack averages over as many draws,
    ``test/quiet_accuracy`` and ``test/quiet_pgd_accuracy``, where noise is off for the attack and
    the answer, ``test/noise_level``, the noise's deviation in those of the weights, and
    ``test/noise_colour``, the share of its variance that is correlated, both means over the layers.

    Args:
        net: The classifier; noise is put into it.
        noise: ``"none"``, ``"white"`` or ``"coloured"``, on the weights of every layer.
        radius: Largest change of a pixel.
        defended: False trains on clean images alone.
        rank: Correlated directions of colored noise.
        penalty: Factor of :func:`~lightning_sobolev.layers.noise_penalty`.
        draws: Draws of the noise at test time.
        lr: Learning rate of the first step; it falls to zero along half a cosine.
        max_steps: Length of the training.
        optimizer: adam, adamw, sgd or soap.

    Raises:
        ValueError: If the kind of noise is unknown or a number is out of range.

    Source:
        Zheltonozhskii et al. 2020 (arXiv:2003.02188), after their released code.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        noise: Literal["none", "white", "coloured"] = "coloured",
        radius: float = 0.1,
        defended: bool = True,
        rank: int = 5,
        penalty: float = 1e-3,
        draws: int = 10,
        lr: float = 1e-3,
        max_steps: int = 1000,
        optimizer: str = "adam",
    ) -> None:
        super().__init__()
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {NOISES}, got {noise!r}")
        if penalty < 0:
            raise ValueError(f"penalty must be at least 0, got {penalty}")
        self.net, self.noisy = net, noise != "none"
        if self.noisy:
            inject_noise(net, rank=rank, colour=noise == "coloured")
        self.attack = GradientAttack(radius=radius)
        fgsm = GradientAttack.fgsm(radius)
        strong = GradientAttack(radius=radius, steps=_TEST_STEPS)
        self.attacks = {"fgsm": fgsm, "pgd": strong}
        if self.noisy:
            expected = GradientAttack(radius=radius, steps=_TEST_STEPS, draws=draws)
            self.attacks["expected_pgd"] = expected
        self.defended, self.penalty, self.draws = defended, penalty, draws
        self.lr, self.max_steps, self.optimizer = lr, max_steps, optimizer

    def forward(self, x: Float[Tensor, "batch *pixels"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        del batch_idx
        x, y = batch["x"], batch["y"]
        loss = cross_entropy(self(x), y)
        if self.defended:
            attacked = self.attack(self.net, x, y)
            loss = 0.5 * loss + 0.5 * cross_entropy(self(attacked), y)
        if self.noisy:
            loss = loss + self.penalty * noise_penalty(self.net)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure accuracy on clean and attacked images."""
        del batch_idx
        self._log_accuracies("val", batch, {"attacked": self.attack})

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Measure accuracy under every attack, with noise and without."""
        del batch_idx
        self._log_accuracies("test", batch, self.attacks)
        if not self.noisy:
            return
        switch_evaluation_noise(self.net, on=False)
        try:
            self._log_accuracies("test", batch, {"pgd": self.attacks["pgd"]}, prefix="quiet_")
        finally:
            switch_evaluation_noise(self.net, on=True)
        numbers = {f"test/noise_{name}": number for name, number in noise_numbers(self.net).items()}
        self.log_dict(numbers, batch_size=len(batch["y"]))

    def _log_accuracies(
        self,
        stage: str,
        batch: Mapping[str, Tensor],
        attacks: Mapping[str, GradientAttack],
        prefix: str = "",
    ) -> None:
        with torch.inference_mode(False), torch.no_grad():
            x, y = batch["x"].clone(), batch["y"].clone()
            found = {"accuracy": self._accuracy(x, y)}
            for name, attack in attacks.items():
                found[f"{name}_accuracy"] = self._accuracy(attack(self.net, x, y), y)
        named = {f"{stage}/{prefix}{name}": accuracy for name, accuracy in found.items()}
        self.log_dict(named, batch_size=len(y))

    def _accuracy(self, x: Tensor, y: Int[Tensor, " batch"]) -> Tensor:
        draws = self.draws if self.noisy else 1
        right = [(self(x).argmax(-1) == y).float().mean() for _ in range(draws)]
        return torch.stack(right).mean()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer."""
        return cosine_decay(
            self.parameters(), optimizer=self.optimizer, lr=self.lr, max_steps=self.max_steps
        )


def noise_numbers(module: nn.Module) -> dict[str, float]:
    r"""Say how much noise a network has learned to have, and how much of it is correlated.

    Args:
        module: A network with noise.

    Returns:
        ``level``: :math:`\sqrt{\mathrm{tr}(\Sigma) / D} / s`; ``colour``:
        :math:`|F|^2 / \mathrm{tr}(\Sigma / s^2)`; both means over the layers.
    """
    levels, shares = [], []
    with torch.no_grad():
        for noise in module.modules():
            if isinstance(noise, NoiseInjection):
                variance = noise.variance.mean()
                levels.append(variance.sqrt())
                shares.append(1 - noise.alpha.square().mean() / variance)
        return {
            "level": float(torch.stack(levels).mean()),
            "colour": float(torch.stack(shares).mean()),
        }
