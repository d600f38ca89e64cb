"""The random choices of one step: directions and rows, never a hidden generator."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_sobolev._groups import Groups, basis_of_groups
from lightning_sobolev.functional.band_limits import low_pass, space_axes
from lightning_sobolev.functional.fisher import FISHER, fisher
from lightning_sobolev.functional.projections import draw, hash_words
from lightning_sobolev.spec import SobolevTerm

_COTANGENT, _TANGENT, _ROWS, _POINTS = 0, 1, 2, 3
_CPU = torch.device("cpu")

Generators = dict[torch.device, torch.Generator]
"""One for each device, seeded anew for every draw."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Every random choice of one evaluation, a pure function of (seed, rank, counter, call).

    Only the counter needs saving for an exact resume on every rank; asking twice gives the same.
    Numbers are drawn on the device of what they are paired with: one seed gives the same run on the
    same kind of device.
    """

    seed: int
    rank: int
    counter: int
    call: int = 0
    generators: Generators = field(default_factory=dict, compare=False, repr=False)

    def cotangents(
        self, index: int, term: SobolevTerm, y: Tensor, log_probs: Tensor | None = None,
        groups: Groups | None = None,
    ) -> Tensor:  # fmt: skip
        """Return ``[proj, batch, *out]`` for term number ``index`` at outputs like ``y``.

        ``log_probs`` are those of a ``fisher`` projection, ``y`` where there are none; ``groups``
        those of output rows that depend on one another's inputs.
        """
        if term.projection == FISHER:
            given = (y if log_probs is None else log_probs).reshape(y.shape).to(y.dtype)
            count = term.num_projections or 1
            generator = self._generator(index, _COTANGENT, y.device)
            return fisher(given, num_projections=count, generator=generator)
        return self._draw(index, _COTANGENT, term, y, groups)

    def tangents(
        self, index: int, term: SobolevTerm, x: Tensor, groups: Groups | None = None
    ) -> Tensor:
        """Return ``[proj, batch, *in]`` for term number ``index`` at inputs like ``x``."""
        drawn = self._draw(index, _TANGENT, term, x, groups)
        if term.band is None:
            return drawn
        axes = space_axes(x.shape[1:], term.band, f"term {term.key!r}")
        return low_pass(drawn, term.band, axes)

    def rows(self, fraction: float, size: int) -> Tensor:
        """A random subset of ``fraction`` of ``size`` rows, at least one, in order."""
        count = max(1, round(fraction * size))
        # Terms with the same fraction share their rows, and so one replay.
        generator = self._generator(round(fraction * 1e6), _ROWS)
        return torch.randperm(size, generator=generator)[:count].sort().values

    def points(self, index: int, device: torch.device) -> torch.Generator:
        """Return the generator of the points that term number ``index`` is the first to have."""
        return self._generator(index, _POINTS, device)

    def _draw(
        self, index: int, what: int, term: SobolevTerm, like: Tensor, groups: Groups | None
    ) -> Tensor:
        law, generator = term.projection, self._generator(index, what, like.device)
        if law == "basis" and groups is not None:
            return basis_of_groups(groups, like, term.num_projections, generator)
        drawn: Any = partial(draw, law) if isinstance(law, str) else law.draw
        directions: Tensor = drawn(
            like.shape, generator=generator, dtype=like.dtype, device=like.device,
            num_projections=term.num_projections,
        )  # fmt: skip
        return directions

    def _generator(self, index: int, what: int, device: torch.device = _CPU) -> torch.Generator:
        generator = self.generators.get(device)
        if generator is None:
            generator = self.generators[device] = torch.Generator(device)
        words = (self.seed, self.rank, self.counter, index, what)
        return generator.manual_seed(hash_words(*words, *([self.call] if self.call else [])))
