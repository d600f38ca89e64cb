r"""What the derivative of a live teacher is made of, at the states of a data set.

Energy is :math:`\sum |J|^2` over states, outputs and inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sobolev._types import Teacher
from lightning_sobolev.doctor.asking import projections
from lightning_sobolev.doctor.moves import OutputMap, blocks, check_finite, jet_at

LOW, HIGH = 0.1, 0.3
"""Spatial frequencies in cycles a place, between which energy is neither low nor high."""


@dataclass(frozen=True, slots=True)
class Stability:
    r"""How much the derivative changes beside a state.

    Args:
        noise: Standard deviation of the noise, in that of the input.
        nmse: :math:`\sum |J(x + n) - J(x)|^2 / \sum |J(x)|^2`; 0 is the same, 2 an unrelated one of
            the same energy.
        cosine: :math:`\sum \langle J(x + n), J(x) \rangle` over the root of both energies.
    """

    noise: float
    nmse: float
    cosine: float

    @property
    def place(self) -> str:
        """Where it was measured."""
        return f"noise of {self.noise:g} std"


@dataclass(frozen=True, slots=True)
class Varying:
    """Where the derivative's energy lies.

    Args:
        above: Inputs whose standard deviation over the data is above this count, in that of the
            input.
        inputs: Their share of all inputs.
        energy: Their share of the energy.
    """

    above: float
    inputs: float
    energy: float

    @property
    def place(self) -> str:
        """Where it was measured."""
        return f"inputs with a std above {self.above:g}"


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Shares of the energy at low and at high spatial frequencies.

    Args:
        low: Below 0.1 cycles a place; the constant part is among it.
        high: Above 0.3 cycles a place.
    """

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gradient:
    """What the derivative is made of.

    Args:
        stability: How it changes beside the states, for every strength of noise.
        varying: Where its energy lies, for every threshold.
        spectrum: Its spatial frequencies; None without axes of space.
    """

    stability: tuple[Stability, ...]
    varying: tuple[Varying, ...]
    spectrum: Spectrum | None

    @property
    def bands(self) -> tuple[tuple[str, float], ...]:
        """Shares of the energy by band of frequencies; none without axes of space."""
        if self.spectrum is None:
            return ()
        low, high = f"below {LOW:g} cycles a place", f"above {HIGH:g} cycles a place"
        return (low, self.spectrum.low), (high, self.spectrum.high)


def gradient_of(
    teacher: Teacher, x: Float[Tensor, "batch *in"], near: Mapping[float, Tensor], on: OutputMap,
    spread: Float[Tensor, "*in"], thresholds: Sequence[float],
) -> Gradient | None:  # fmt: skip
    """Measure the derivative of ``on(teacher)`` at states and beside them.

    Of more than 16 outputs four fixed random combinations stand for all.

    Cost: one forward pass and a backward pass for each output, at the states and for each kind of
    noise; memory for the Jacobians of about a million inputs.

    Args:
        teacher: Answers at any points, see :func:`~lightning_sobolev.doctor.moves.answering`.
        x: The states.
        near: The same with noise, by its strength.
        on: Output map.
        spread: Standard deviation of each input over the data, in that of the input.
        thresholds: Which inputs count as varying.

    Returns:
        All of it; None where the derivative is zero everywhere.

    Raises:
        ValueError: If a derivative is not finite.
    """
    energy, power = x.new_zeros(x.shape[1:]).double(), x.new_zeros(x.shape[2:]).double()
    sums = torch.zeros(len(near), 3, dtype=torch.float64)
    for here, *others in blocks(x, *near.values()):
        rows = _jacobian(teacher, here, on)
        energy += rows.double().square().sum((0, 1))
        power += _power(rows) if x.ndim > 2 else 0.0
        for place, each in enumerate(others):
            sums[place] += _compared(rows, _jacobian(teacher, each, on))
    if not bool(energy.any()):
        return None
    pairs = zip(near, sums, strict=True)
    stability = tuple(
        Stability(noise, *_nmse_and_cosine(energy.sum(), own)) for noise, own in pairs
    )
    varying = tuple(_varying(energy, spread, above) for above in thresholds)
    return Gradient(stability, varying, _spectrum(power) if x.ndim > 2 else None)


def _jacobian(teacher: Teacher, x: Tensor, on: OutputMap) -> Float[Tensor, "proj batch *in"]:
    jet = jet_at(teacher, x, on)
    shape = jet.value.shape
    onto = projections(jet.value.detach().reshape(len(x), -1))
    cotangents = onto[:, None].expand(-1, len(x), -1).reshape(-1, *shape)
    rows = jet.vjp(cotangents).detach()
    check_finite(rows)
    return rows


def _compared(rows: Tensor, others: Tensor) -> Float[Tensor, "3"]:
    """Return what lies between both, their product, and the energy of the second."""
    found = ((others - rows).square(), others * rows, others.square())
    return torch.stack([each.double().sum() for each in found]).cpu()


def _nmse_and_cosine(energy: Tensor, sums: Tensor) -> tuple[float, float]:
    between, product, others = sums.tolist()
    total = float(energy)
    return between / total, product / (total * others) ** 0.5 if others > 0.0 else 0.0


def _varying(energy: Tensor, spread: Tensor, above: float) -> Varying:
    counts = spread > above
    share = float(energy[counts].sum() / energy.sum())
    return Varying(above, float(counts.double().mean()), share)


def _power(rows: Float[Tensor, "proj batch channels *space"]) -> Float[Tensor, "*space"]:
    axes = tuple(range(3, rows.ndim))
    power: Tensor = torch.fft.fftn(rows, dim=axes).abs().double().square().sum((0, 1, 2))
    return power


def _spectrum(power: Float[Tensor, "*space"]) -> Spectrum:
    axes = [torch.fft.fftfreq(size, dtype=power.dtype, device=power.device) for size in power.shape]
    grid = torch.meshgrid(*axes, indexing="ij")
    frequency = torch.stack(grid).square().sum(0).sqrt()
    low, high = (power[own].sum() / power.sum() for own in (frequency < LOW, frequency > HIGH))
    return Spectrum(float(low), float(high))
