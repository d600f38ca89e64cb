r"""Where student and teacher are compared: at the observed inputs, or at points made of them.

A teacher that can be asked anywhere knows more than the stored states show. Its values at states
whose parts come from two stored ones tell what a derivative, which is linear, cannot.

Every kind is a frozen dataclass that is called with a batch, a generator and the global step. What
is random comes from the generator alone, so that a resumed run goes on exactly.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.schedules import Schedule

PointsFn = Callable[[Tensor, Generator], Tensor]
"""A function of inputs ``[batch, *in]`` and a generator that returns as many others."""


@runtime_checkable
class Points(Protocol):
    """Points that are made of the observed inputs and may depend on the global step."""

    def at(self, x: Tensor, generator: Generator, step: int) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class _Share(ABC):
    """Moves a random share of the rows; the others stay where they are."""

    share: float | Schedule = 1.0

    def __post_init__(self) -> None:
        is_number = isinstance(self.share, Real) and 0.0 < float(self.share) <= 1.0
        fits = isinstance(self.share, Schedule) or is_number
        require(fits, "share", "in (0, 1] or a schedule", self.share)

    def at(self, x: Tensor, generator: Generator, step: int) -> Tensor:
        """Return the points at a global step."""
        share = self.share.at(step) if isinstance(self.share, Schedule) else self.share
        require(0.0 <= share <= 1.0, f"share at step {step}", "in [0, 1]", share)
        rows = torch.randperm(len(x), generator=generator, device=generator.device)
        rows = rows[: round(share * len(x))].to(x.device)
        return x.index_copy(0, rows, self._moved(x, rows, generator)) if len(rows) else x

    @abstractmethod
    def _moved(self, x: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        """Return what takes the place of some rows."""


@dataclass(frozen=True, slots=True)
class Recombine(_Share):
    r"""Rows whose parts come from two rows of the batch.

    Each row has a partner among the others and one of the kinds, drawn anew in every step:

    - ``"cutmix"``: a box of the partner, a tenth to four fifths of each axis of space long;
    - ``"grid:n"``: each of n cells along each axis of space from one of the two, with equal chance;
    - ``"elements"``: each element from one of the two: what there is for vectors.

    Axes of space are those behind the channels, ``[batch, channels, *space]``; all channels (frames
    of a stack) are cut alike. Every part of the new row has been seen; their combination has not.

    Args:
        share: Share of the rows that are replaced, or a schedule of it.
        kinds: Which kinds; None: cutmix and grid:12 where there are axes of space, else elements.

    Raises:
        ValueError: If a kind is unknown, or needs axes of space and there are none.

    Source:
        Yun et al. 2019, CutMix (arXiv:1905.04899), for boxes.
    """

    share: float | Schedule = 0.75
    kinds: Sequence[str] | None = None

    def __post_init__(self) -> None:
        _Share.__post_init__(self)
        if self.kinds is None:
            return
        kinds = (self.kinds,) if isinstance(self.kinds, str) else tuple(self.kinds)
        require(bool(kinds) and all(map(_is_kind, kinds)), "kinds", _KINDS, self.kinds)
        object.__setattr__(self, "kinds", kinds)

    def _moved(self, x: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        has_space = x.ndim > 2
        kinds = self.kinds or (("cutmix", "grid:12") if has_space else ("elements",))
        needs = [kind for kind in kinds if kind != "elements"]
        fits = has_space or not needs
        require(fits, "points", "'elements' for inputs without axes of space", kinds)
        partners = _partners(rows, len(x), generator)
        chosen = _integers(len(kinds), (len(rows),), generator).to(x.device)
        mask = torch.zeros(len(rows), *x.shape[1:], dtype=torch.bool, device=x.device)
        for number, kind in enumerate(kinds):
            own = chosen == number
            mask[own] = _mask(kind, x[rows[own]], generator).expand_as(mask[own])
        return torch.where(mask, x[partners], x[rows])


@dataclass(frozen=True, slots=True)
class Mixup(_Share):
    """Points between two rows of the batch, at a uniform share of the way.

    Raises:
        ValueError: If the inputs are no floating-point numbers.

    Source:
        Zhang et al. 2018, mixup (arXiv:1710.09412).
    """

    def _moved(self, x: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        _require_floats(self, x)
        way = _uniform((len(rows),), generator).to(x).reshape(-1, *[1] * (x.ndim - 1))
        return torch.lerp(x[rows], x[_partners(rows, len(x), generator)], way)


@dataclass(frozen=True, slots=True)
class Noise(_Share):
    """Normal noise, ``std`` in the units of the input.

    Raises:
        ValueError: If ``std`` is no finite number above 0, or the inputs no floating-point numbers.
    """

    std: float = 0.01

    def __post_init__(self) -> None:
        _Share.__post_init__(self)
        require(0.0 < self.std < math.inf, "std", "a finite number > 0", self.std)

    def _moved(self, x: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        _require_floats(self, x)
        shape = (len(rows), *x.shape[1:])
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        drawn = torch.randn(shape, generator=generator, dtype=exact, device=generator.device)
        return x[rows] + self.std * drawn.to(x)


@dataclass(frozen=True, slots=True)
class Shift(_Share):
    """Moves pictures by up to ``most`` places along each axis of space; borders are repeated.

    Raises:
        ValueError: If ``most`` is below 1, or the input has no axes of space.

    Source:
        Kostrikov, Yarats and Fergus 2021, DrQ (arXiv:2004.13649).
    """

    most: int = 4

    def __post_init__(self) -> None:
        _Share.__post_init__(self)
        require(self.most >= 1, "most", "at least 1", self.most)

    def _moved(self, x: Tensor, rows: Tensor, generator: Generator) -> Tensor:
        require(x.ndim > 2, "points", "Shift for inputs [batch, channels, *space]", list(x.shape))
        moved = x[rows]
        for axis in range(2, x.ndim):
            by = _integers(2 * self.most + 1, (len(rows), 1), generator).to(x.device) - self.most
            size = x.shape[axis]
            places = (torch.arange(size, device=x.device) + by).clamp(0, size - 1)
            shape = [len(rows), *[1] * (axis - 1), size, *[1] * (x.ndim - axis - 1)]
            moved = moved.gather(axis, places.reshape(shape).expand(moved.shape))
        return moved


def points_at(
    points: Points | PointsFn, x: Float[Tensor, "batch *in"], generator: Generator,
    step: Callable[[], int],
) -> Float[Tensor, "batch *in"]:  # fmt: skip
    """Return the points that are made of inputs, without a graph.

    Raises:
        ValueError: If a function returns another shape or type.
    """
    with torch.no_grad():
        if isinstance(points, Points):
            made = points.at(x if isinstance(points, _Share) else x.clone(), generator, step())
        else:
            made = points(x.clone(), generator)  # it may write there
    fits = isinstance(made, Tensor) and made.shape == x.shape and made.dtype == x.dtype
    got = f"{list(made.shape)} {made.dtype}" if isinstance(made, Tensor) else type(made).__name__
    require(fits, "points", f"a function that returns {list(x.shape)} {x.dtype}", got)
    return made.detach()


def _require_floats(points: Points, x: Tensor) -> None:
    expected = f"{type(points).__name__} of floating-point inputs"
    require(x.is_floating_point(), "points", expected, x.dtype)


_KINDS = "some of 'cutmix', 'grid:n' and 'elements'"


def _is_kind(kind: str) -> bool:
    head, _, count = kind.partition(":")
    return kind in ("cutmix", "elements") or (head == "grid" and count.isdigit() and int(count) > 1)


def _mask(kind: str, x: Tensor, generator: Generator) -> Bool[Tensor, "rows *axes"]:
    """Say which elements come from the partner."""
    if kind == "elements":
        return _uniform(x.shape, generator).to(x.device) < 0.5
    sizes = x.shape[2:]
    if kind == "cutmix":
        mask = torch.ones(len(x), 1, *sizes, dtype=torch.bool, device=x.device)
        for axis, size in enumerate(sizes, start=2):
            length = size * (0.1 + 0.7 * _uniform((len(x), 1), generator))
            start = _uniform((len(x), 1), generator) * (size - length)
            place = torch.arange(0.5, size, dtype=length.dtype, device=generator.device)
            inside = ((place >= start) & (place < start + length)).to(x.device)
            mask &= inside.reshape(len(x), *[1] * (axis - 1), size, *[1] * (x.ndim - axis - 1))
        return mask
    count = int(kind.partition(":")[2])
    cells = _uniform((len(x), 1, *[count] * len(sizes)), generator).to(x.device) < 0.5
    for axis, size in enumerate(sizes, start=2):
        cells = cells.index_select(axis, torch.arange(size, device=x.device) * count // size)
    return cells


def _partners(rows: Tensor, size: int, generator: Generator) -> Tensor:
    # Another row each, all with equal chance; of a single row itself.
    by = 1 + _integers(max(size - 1, 1), (len(rows),), generator).to(rows.device)
    return (rows + by) % size


def _uniform(shape: Sequence[int], generator: Generator) -> Tensor:
    # of a type of its own: with precision="64-true" or "bf16-true" the default one is another
    device, dtype = generator.device, torch.float32
    return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=device)


def _integers(below: int, shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randint(below, tuple(shape), generator=generator, device=generator.device)
