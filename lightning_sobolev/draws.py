"""The random choices of one step: directions and rows, never a hidden generator."""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from lightning_sobolev._types import DrawnJet, Jet
from lightning_sobolev.functional.band_limits import low_pass, space_axes
from lightning_sobolev.functional.covariance import Covariance
from lightning_sobolev.functional.fisher import FISHER, fisher
from lightning_sobolev.functional.projections import draw, generator_for
from lightning_sobolev.spec import SobolevTerm

_COTANGENT, _TANGENT, _ROWS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Draws:
    """Every random choice of one step, a pure function of (seed, rank, counter).

    Only the counter needs saving for an exact resume on every rank; asking twice gives the same.
    """

    seed: int
    rank: int
    counter: int

    def _generator(self, index: int, what: int) -> torch.Generator:
        return generator_for(self.seed, self.rank, self.counter, index, what)

    def cotangents(
        self, index: int, term: SobolevTerm, y: Tensor, target: Jet | None = None
    ) -> Tensor:
        """Return ``[proj, batch, *out]`` for term number ``index`` at outputs like ``y``.

        A target's own directions come first; its value are the log-probabilities of a ``fisher``
        projection, ``y`` where there is none.
        """
        if (own := self._own(term, target)) is not None:
            return own.reshape(len(own), *y.shape)
        if term.projection == FISHER:
            log_probs = (y if target is None else target.value).reshape(y.shape).to(y.dtype)
            count = term.num_projections or 1
            generator = self._generator(index, _COTANGENT)
            return fisher(log_probs, num_projections=count, generator=generator)
        return self._draw(index, _COTANGENT, term, y)

    def tangents(
        self, index: int, term: SobolevTerm, x: Tensor, target: Jet | None = None
    ) -> Tensor:
        """Return ``[proj, batch, *in]`` for term number ``index``; a target's own come first."""
        if (own := self._own(term, target)) is not None:
            if term.band is not None:
                raise ValueError(
                    f"band of term {term.key!r} must be None where the teacher knows its own "
                    f"tangents alone, which cannot be filtered, got {term.band}"
                )
            return own
        drawn = self._draw(index, _TANGENT, term, x)
        if term.band is None:
            return drawn
        axes = space_axes(x.shape[1:], term.band, f"term {term.key!r}")
        return low_pass(drawn, term.band, axes)

    def _own(self, term: SobolevTerm, target: Jet | None) -> Tensor | None:
        # isinstance() with a protocol looks up all of its methods, which shows in small steps.
        has_own = hasattr(target, "drawn")
        return cast(DrawnJet, target).drawn(term, self.counter) if has_own else None

    def _draw(self, index: int, what: int, term: SobolevTerm, like: Tensor) -> Tensor:
        law = term.projection
        drawn: Any = law.draw if isinstance(law, Covariance) else partial(draw, law)
        directions: Tensor = drawn(
            like.shape, generator=self._generator(index, what), dtype=like.dtype,
            device=like.device, num_projections=term.num_projections,
        )  # fmt: skip
        return directions

    def rows(self, fraction: float, size: int) -> Tensor:
        """A random subset of ``fraction`` of ``size`` rows, at least one, in order."""
        count = max(1, round(fraction * size))
        # Terms with the same fraction share their rows, and so one forward pass.
        generator = self._generator(round(fraction * 1e6), _ROWS)
        return torch.randperm(size, generator=generator)[:count].sort().values
