"""One network over the rate at which it is tested: what it sees and how often it is right."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_sobolev.experiments.common import figures
from lightning_sobolev.functional.band_limits import low_pass


def save_profile(
    path: Path,
    example: Tensor,
    by_rate: Mapping[float, float],
    by_noise: Mapping[float, float],
    title: str,
) -> None:
    """Draw an input at every rate, above the accuracies over rate and noise."""
    figure = figures.blank(1.6 * len(by_rate), 5.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    above, below = parts
    above.suptitle(f"{title}; one input as a test at each rate shows it")
    signal = example[0]
    for axes, rate in zip(above.subplots(1, len(by_rate), sharey=True), by_rate, strict=True):
        seen = low_pass(signal, rate, signal.ndim).numpy()
        if signal.ndim == 1:
            axes.plot(seen)
        else:
            axes.imshow(seen, cmap="gray", vmin=float(signal.min()), vmax=float(signal.max()))
        axes.set(title=f"rate {rate:g}", xticks=[], yticks=[])
    left, right = below.subplots(1, 2, sharey=True)
    left.plot(list(by_rate), list(by_rate.values()), marker="o")
    left.set(xlabel="part of the spectrum that is cut (%)", ylabel="accuracy", ylim=(0, 1))
    right.plot(list(by_noise), list(by_noise.values()), marker="o")
    right.set(xlabel="noise (standard deviations of the data)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figures.save(figure, path)
