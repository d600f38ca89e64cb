"""What a classifier knows when its spectrum is cut at test time, and under noise."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sobolev.experiments.report.layouts import BAND_LIMITS, NOISES, RATES
from lightning_sobolev.experiments.report.tables import MeanAndError, Summary
from lightning_sobolev.experiments.run.finished import FinishedRun
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.layers import band_limit


class BandProfile:
    """Test the trained network at other rates, and at its own rate under Gaussian noise.

    Adds ``test/accuracy_rate_R`` and ``test/accuracy_noise_S``; S is the noise's deviation in units
    of the data's. The noise is the same for every network. Networks end as they were trained.

    Args:
        rate: The rate at which the network was trained.
        energy: The share of energy, if that was its rule.
        rows: Test inputs that are used, the first ones; in whole batches.
    """

    def __init__(self, rate: float, energy: float | None = None, rows: int = 2000) -> None:
        self.rate, self.energy, self.rows = rate, energy, rows

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Return the accuracies."""
        net: nn.Module = run.module.net  # type: ignore[assignment]
        batches = self._batches(run.datamodule)
        numbers = {}
        net.eval()
        for rate in RATES:
            band_limit(net, rate)
            numbers[f"test/accuracy_rate_{rate:g}"] = accuracy(net, batches)
        band_limit(net, self.rate, energy=self.energy)
        for noise in NOISES:
            noisy = [(_with_noise(x, noise, place), y) for place, (x, y) in enumerate(batches)]
            numbers[f"test/accuracy_noise_{noise:g}"] = accuracy(net, noisy)
        return numbers

    def _batches(self, datamodule: Any) -> list[tuple[Tensor, Tensor]]:
        found: list[tuple[Tensor, Tensor]] = []
        for batch in datamodule.test_dataloader():
            if sum(len(y) for _, y in found) >= self.rows:
                break
            found.append((batch["x"], batch["y"]))
        return found


def accuracy(net: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of right answers.

    Args:
        net: Maps inputs to logits.
        batches: Inputs and classes.
    """
    with torch.no_grad():
        right = sum(int((net(x).argmax(-1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def _with_noise(x: Tensor, noise: float, place: int) -> Tensor:
    drawn = torch.randn(x.shape, generator=generator_for(place), dtype=x.dtype)
    return x + noise * drawn


def draw_bands(path: Path, summary: Summary) -> Path:
    """Draw accuracy over the rate and over the noise, a row of axes for each data set.

    Args:
        path: The picture.
        summary: Averages over seeds.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    cells = [(dict(zip(BAND_LIMITS.groups, g, strict=True)), e) for g, e in summary.items()]
    fixed = [(cell, estimates) for cell, estimates in cells if cell["energy"] == ""]
    names = sorted({str(cell["data"]) for cell, _ in fixed})
    figure = Figure(figsize=(8.4, 3.2 * len(names)), layout="constrained")
    for axes, name in zip(figure.subplots(len(names), 2, squeeze=False), names, strict=True):
        rates = {float(c["rate"]): e for c, e in fixed if c["data"] == name}
        same = {rate: e["test_accuracy"] for rate, e in sorted(rates.items())}
        _draw(axes[0], same, "trained and tested at the rate")
        if 0.0 in rates:
            tested = {rate: rates[0.0][f"test_accuracy_rate_{rate:g}"] for rate in RATES}
            _draw(axes[0], tested, "trained whole, tested at the rate")
        for rate in sorted(rates.keys() & {0.0, 50.0, 85.0}):
            noisy = {noise: rates[rate][f"test_accuracy_noise_{noise:g}"] for noise in NOISES}
            _draw(axes[1], noisy, f"rate {rate:g}")
        axes[0].set(title=name, xlabel="percent of the spectrum that is cut", ylabel="accuracy")
        axes[1].set(title=name, xlabel="deviation of the noise", ylabel="accuracy")
        for each in axes:
            each.grid(alpha=0.3)
            each.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path


def _draw(axes: Any, points: Mapping[float, MeanAndError], label: str) -> None:
    errors = [e.error if e.count > 1 else 0.0 for e in points.values()]
    means = [e.mean for e in points.values()]
    axes.errorbar(list(points), means, errors, marker="o", markersize=3, capsize=2, label=label)
