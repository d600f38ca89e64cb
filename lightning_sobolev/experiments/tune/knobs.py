"""What a population may turn: positive settings between two bounds, in logarithms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from omegaconf import DictConfig, OmegaConf

# Note [logarithms]: from here to the scheduler a knob's position is the logarithm of its setting.
# A factor is a shift, a draw is uniform, and a Gaussian process sees decades as equally wide.
Positions = dict[str, float]


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting, or several that move together.

    Args:
        paths: Key paths in the configuration that all take its value.
        low: Smallest value, above zero.
        high: Largest value.

    Raises:
        ValueError: If there is no path or the bounds are not positive and in order.
    """

    paths: Sequence[str]
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(self.paths))
        if not self.paths:
            raise ValueError("paths of a knob must name at least one setting, got none")
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"low and high must be 0 < low < high, got {self.low}, {self.high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest position."""
        return math.log(self.low), math.log(self.high)

    def value(self, position: float) -> float:
        """Return the setting at a position, inside the bounds to the last digit."""
        return min(max(math.exp(position), self.low), self.high)


Knobs = Mapping[str, Knob]


def read_knobs(cfg: DictConfig, given: Mapping[str, Mapping[str, object]]) -> dict[str, Knob]:
    """Build knobs and check that what they turn is there.

    Args:
        cfg: The composed configuration.
        given: ``paths``, ``low`` and ``high`` by the knob's name.

    Returns:
        The knobs by name.

    Raises:
        ValueError: If a path names nothing, or bounds are out of order.
    """
    knobs = {str(name): Knob(**settings) for name, settings in given.items()}  # type: ignore[arg-type]
    for name, knob in knobs.items():
        for path in knob.paths:
            if OmegaConf.select(cfg, path) is None:
                raise ValueError(f"tuning.knobs.{name}: paths must be settings, got {path!r}")
    return knobs


def apply(cfg: DictConfig, knobs: Knobs, positions: Mapping[str, float]) -> DictConfig:
    """Return a copy of a configuration in which the knobs stand at these positions.

    Args:
        cfg: The composed configuration.
        knobs: By name.
        positions: By name.
    """
    cfg = cfg.copy()
    for name, knob in knobs.items():
        for path in knob.paths:
            OmegaConf.update(cfg, path, knob.value(positions[name]))
    return cfg


def draw(knobs: Knobs, random: Random) -> Positions:
    """Draw every knob log-uniformly between its bounds.

    Args:
        knobs: By name.
        random: Source of the draws.

    Returns:
        Their positions by name.
    """
    return {name: random.uniform(*knob.bounds) for name, knob in knobs.items()}


def explore(
    positions: Mapping[str, float],
    knobs: Knobs,
    random: Random,
    *,
    factors: Sequence[float] = (0.8, 1.2),
    resample_probability: float = 0.25,
) -> Positions:
    """Perturb the settings that were copied: each by a factor, or drawn anew.

    Args:
        positions: Of the donor.
        knobs: By name; a perturbed setting that leaves its bounds stops there.
        random: Source of the draws.
        factors: One of them multiplies a setting.
        resample_probability: Probability of a fresh draw instead.

    Returns:
        The new positions.

    Source:
        Jaderberg et al. 2017, Population Based Training of Neural Networks (arXiv:1711.09846):
        perturb and resample.
    """
    moved = {}
    for name, knob in knobs.items():
        low, high = knob.bounds
        if random.random() < resample_probability:
            moved[name] = random.uniform(low, high)
        else:
            shifted = positions[name] + math.log(random.choice(factors))
            moved[name] = min(max(shifted, low), high)
    return moved
