"""Weights as functions of the global step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from lightning_sobolev._checks import require


@runtime_checkable
class Schedule(Protocol):
    """A weight as a function of the global step."""

    def at(self, step: int) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Ramp:
    """From ``start`` to ``end`` within ``steps`` steps, then ``end`` for good."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        require(is_weight(self.start), "start", "a finite number >= 0", self.start)
        require(is_weight(self.end), "end", "a finite number >= 0", self.end)
        require(self.steps >= 1, "steps", "at least 1", self.steps)

    @classmethod
    def within(cls, share: float, steps: int, start: float, end: float = 0.0) -> Self:
        """Return one that has reached ``end`` after a share of a training's ``steps``.

        A term whose weight is zero is not evaluated: with ``share=0.5`` and ``end=0`` the second
        half of the training costs what it costs without the term.
        """
        require(share > 0.0, "share", "positive", share)
        return cls(start, end, max(1, round(share * steps)))

    def _fraction(self, step: int) -> float:
        return min(max(step / self.steps, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Linear(_Ramp):
    """A straight line from ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        return self.start + (self.end - self.start) * self._fraction(step)


@dataclass(frozen=True, slots=True)
class Cosine(_Ramp):
    """Half a cosine from ``start`` to ``end`` over ``steps`` steps, then ``end``."""

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        share = 0.5 * (1.0 + math.cos(math.pi * self._fraction(step)))
        return self.end + (self.start - self.end) * share


@dataclass(frozen=True, slots=True)
class Step:
    """``values[i]`` from ``boundaries[i - 1]`` on; ``values[0]`` before the first boundary."""

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        # Lists from a YAML file would make the frozen object changeable and unhashable.
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        expected = "one longer than boundaries"
        require(len(self.values) == len(self.boundaries) + 1, "values", expected, self.values)
        require(all(map(is_weight, self.values)), "values", "finite and >= 0", self.values)
        ordered = list(self.boundaries) == sorted(set(self.boundaries))
        require(ordered, "boundaries", "strictly increasing", self.boundaries)

    def at(self, step: int) -> float:
        """Return the weight at a global step."""
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


def is_weight(value: object) -> bool:
    """Return whether ``value`` is a finite number that is not negative."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0
