"""What a population may change: positive settings between two bounds, in logarithms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf


@dataclass(frozen=True)
class Setting:
    """One setting, or several key paths that move together, above zero.

    From here to the scheduler its position is the logarithm of its value: a factor is a shift, a
    sample is uniform, and a Gaussian process sees decades as equally wide.
    """

    paths: Sequence[str]
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths must name at least one setting, got none")
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"low and high must be 0 < low < high, got {self.low}, {self.high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest position."""
        return math.log(self.low), math.log(self.high)

    def value(self, position: float) -> float:
        """Return the value at a position, inside the bounds to the last digit."""
        return min(max(math.exp(position), self.low), self.high)


SearchSpace = Mapping[str, Setting]


def read_search_space(cfg: DictConfig) -> dict[str, Setting]:
    """Build ``tuning.search_space`` and check that what it names is there."""
    space = {str(name): Setting(**given) for name, given in cfg.tuning.search_space.items()}
    for name, setting in space.items():
        for path in setting.paths:
            if OmegaConf.select(cfg, path) is None:
                text = f"tuning.search_space.{name}: paths must be settings, got {path!r}"
                raise ValueError(text)
    return space


def apply(cfg: DictConfig, space: SearchSpace, positions: Mapping[str, float]) -> DictConfig:
    """Return a copy of a configuration with settings at these positions; others stay."""
    cfg = cfg.copy()
    for name, position in positions.items():
        for path in space[name].paths:
            OmegaConf.update(cfg, path, space[name].value(position))
    return cfg
