"""What a classifier knows when its spectrum is cut at test time, and under noise."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from lightning_sobolev.experiments.band_limits.figure import save_profile
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.layers import band_limit


class BandProfile(pl.Callback):
    """Test the trained network at other rates, and at its own rate under Gaussian noise.

    Logs ``test/accuracy_rate_R`` and ``test/accuracy_noise_S``; S is the noise's standard deviation
    in units of the data's. The noise is the same for every network. Networks end as they were
    trained. Draws ``bands.png``: an input as every rate shows it, and both accuracies.

    Args:
        rate: The rate at which the network was trained.
        energy: The share of energy, if that was its rule.
        rates: Rates at which it is tested.
        noises: Standard deviations of the noise.
        rows: Test inputs that are used, the first ones; in whole batches.
        figure: Whether to draw.
    """

    def __init__(
        self,
        rate: float,
        energy: float | None = None,
        *,
        rates: Sequence[float] = (0.0, 25.0, 50.0, 75.0, 85.0, 95.0),
        noises: Sequence[float] = (0.0, 0.25, 0.5, 1.0, 2.0),
        rows: int = 2000,
        figure: bool = True,
    ) -> None:
        self.rate, self.energy, self.rates, self.noises = rate, energy, rates, noises
        self.rows, self.figure = rows, figure
        self._batches: list[tuple[Tensor, Tensor]] = []

    def on_test_epoch_start(self, *_: Any) -> None:
        """Forget an earlier test."""
        self._batches = []

    def on_test_batch_end(
        self, _trainer: pl.Trainer, _module: pl.LightningModule, _outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Keep the first batches."""
        if sum(len(y) for _, y in self._batches) < self.rows:
            self._batches.append((batch["x"], batch["y"]))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and log the accuracies."""
        net = pl_module.get_submodule("net")
        by_rate = {}
        try:
            for rate in self.rates:
                band_limit(net, rate)
                by_rate[rate] = accuracy(net, self._batches)
        finally:
            band_limit(net, self.rate, energy=self.energy)
        by_noise = {noise: accuracy(net, self._batches, noise=noise) for noise in self.noises}
        found = {f"test/accuracy_rate_{rate:g}": value for rate, value in by_rate.items()}
        found |= {f"test/accuracy_noise_{noise:g}": value for noise, value in by_noise.items()}
        pl_module.log_dict(found)
        if self.figure:
            example = self._batches[0][0][0].cpu()
            trained = f"trained at rate {self.rate:g}"
            if self.energy is not None:
                trained = f"trained on {self.energy:g} % of the energy"
            path = Path(trainer.default_root_dir) / "bands.png"
            save_profile(path, example, by_rate, by_noise, trained)


def accuracy(
    net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], *, noise: float = 0.0
) -> float:
    """Return the share of right answers."""
    answers = []
    with torch.no_grad():
        for number, (x, _) in enumerate(batches):
            drawn = torch.randn(x.shape, generator=generator_for(number), dtype=x.dtype)
            answers.append(net(x + noise * drawn.to(x.device)))
    logits, labels = torch.cat(answers), torch.cat([y for _, y in batches])
    return float(multiclass_accuracy(logits, labels, logits.shape[-1], average="micro"))
