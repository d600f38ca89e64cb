r"""Which frequencies of a signal are kept: one rule for convolutions and for derivatives.

A rate is the percentage of the spectrum that is cut. Of an axis with N points the frequencies
:math:`0, \dots, \lfloor N/2 \rfloor` are there once each and their negatives are mirrors; with d
axes every axis keeps the share :math:`(1 - \text{rate}/100)^{1/d}` of them, the lowest ones.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def check_rate(rate: object, name: str = "rate") -> None:
    """Refuse what is not a percentage in [0, 100), which leaves something."""
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not is_number or not 0.0 <= rate < 100.0:  # type: ignore[operator]
        raise ValueError(f"{name} must be in [0, 100), in percent of the spectrum, got {rate!r}")


def kept(sizes: Sequence[int], rate: float) -> tuple[int, ...]:
    r"""Return how many of the frequencies 0, 1, ... of every axis are kept, at least one.

    Source:
        Dziedzic et al. 2019, Band-limited Training and Inference for Convolutional Neural Networks
        (their code: the root of the kept share, rounded down). There maps are square; other ones
        keep the same share of each axis here.

    Example:
        >>> kept((28, 28), 50.0), kept((84, 40), 85.0), kept((40,), 85.0)
        ((10, 10), (16, 8), (3,))
    """
    share = (1.0 - rate / 100.0) ** (1.0 / len(sizes))
    # The small excess keeps a product that is whole from being rounded to one less.
    return tuple(max(1, math.floor((size // 2 + 1) * share + 1e-9)) for size in sizes)


def kept_by_energy(x: Float[Tensor, "*signals"], energy: float, num_axes: int) -> tuple[int, ...]:
    r"""Return the smallest block of low frequencies that holds a share of the energy of ``x``.

    ``energy`` is a percentage. The blocks that are compared grow by one frequency of the longest
    axis; other axes keep the same share of theirs. One answer is for all signals in ``x`` together:
    it looks at the numbers, and couples the rows of a batch. Costs a Fourier transform.

    Raises:
        ValueError: If ``energy`` is not in (0, 100].

    Source:
        Dziedzic et al. 2019 (their code): the smallest block of the input's spectrum that holds the
        share, over the whole batch. Energies are equal in both domains (Parseval).

    Example:
        >>> wave = torch.cos(2 * torch.pi * 3 * torch.arange(32) / 32)
        >>> kept_by_energy(wave, 99.0, 1), kept_by_energy(1 + 0.1 * wave, 99.0, 1)
        ((4,), (1,))
    """
    if not 0.0 < energy <= 100.0:
        raise ValueError(f"energy must be in (0, 100], in percent, got {energy!r}")
    axes = tuple(range(-num_axes, 0))
    power = torch.fft.fftn(x.detach(), dim=axes).abs().square()
    power = power.reshape(-1, *power.shape[-num_axes:]).sum(0)
    halves = [size // 2 + 1 for size in power.shape]
    levels, longest = torch.zeros((), dtype=torch.int64, device=x.device), max(halves)
    for axis, (size, half) in enumerate(zip(power.shape, halves, strict=True)):
        place = torch.arange(size, device=x.device)
        place = torch.minimum(place, size - place)
        level = torch.where(place > 0, -(-(place + 1) * longest // half), 1)
        levels = torch.maximum(levels, level.reshape(-1, *[1] * (num_axes - 1 - axis)))
    held = torch.bincount(levels.flatten(), power.flatten(), longest + 1).cumsum(0)
    # Rounding must not add a block when everything is asked for.
    short = int((held < held[-1] * (energy / 100.0 - 1e-6)).sum())
    return tuple(max(1, half * max(short, 1) // longest) for half in halves)


def cut_spectrum(
    x: Float[Tensor, "*signals"], counts: Sequence[int]
) -> Complex[Tensor, "*spectra"]:
    """Return the lowest frequencies of the last axes of ``x``, not normalised, as a smaller tensor.

    The last axis holds ``counts[-1]`` frequencies from 0 on; every other one those from 0 on and
    then their negatives, ``2 * count - 1`` in all, or every one where the count (of :func:`kept`)
    says so. An axis is transformed after the later ones were cut.
    """
    # A view would keep the whole spectrum in memory.
    spectrum: Tensor = torch.fft.rfft(x)[..., : counts[-1]].contiguous()
    for axis, count in zip(range(-len(counts), -1), counts, strict=False):
        whole = torch.fft.fft(spectrum, dim=axis)
        size = whole.shape[axis]
        if 2 * count - 1 < size:
            high = whole.narrow(axis, size - count + 1, count - 1)
            whole = torch.cat([whole.narrow(axis, 0, count), high], axis)
        spectrum = whole
    return spectrum


def filled_signal(
    spectrum: Complex[Tensor, "*spectra"], sizes: Sequence[int]
) -> Float[Tensor, "*signals"]:
    """Return the signal whose spectrum was cut: the missing frequencies are zero."""
    for axis, size in zip(range(-len(sizes), -1), sizes, strict=False):
        missing = size - spectrum.shape[axis]
        if missing:
            count = (spectrum.shape[axis] + 1) // 2
            shape = list(spectrum.shape)
            shape[axis] = missing
            low, high = spectrum.narrow(axis, 0, count), spectrum.narrow(axis, count, count - 1)
            spectrum = torch.cat([low, spectrum.new_zeros(shape), high], axis)
        spectrum = torch.fft.ifft(spectrum, dim=axis)
    signal: Tensor = torch.fft.irfft(spectrum, n=sizes[-1])
    return signal


def low_pass(x: Float[Tensor, "*signals"], rate: float, num_axes: int) -> Float[Tensor, "*signals"]:
    r"""Return the lowest frequencies of the last axes: the orthogonal projection on them.

    Of the last ``num_axes`` axes ``rate`` percent of the spectrum are cut; shape and type stay, and
    half precision is filtered in float32. The map P is linear, :math:`P^\top = P = P^2`, and its
    trace is the number of kept directions. Costs a Fourier transform and its inverse.

    Raises:
        ValueError: If the rate is out of range or ``x`` has too few axes.

    Example:
        >>> low_pass(torch.tensor([1.0, 0.0, 1.0, 0.0]), 50.0, 1)
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    check_rate(rate)
    if not 1 <= num_axes <= x.ndim:
        raise ValueError(f"num_axes must be from 1 to the {x.ndim} axes of x, got {num_axes}")
    if rate == 0.0:
        return x
    sizes = x.shape[-num_axes:]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return filled_signal(cut_spectrum(wide, kept(sizes, rate)), sizes).to(x.dtype)


def space_axes(row: Sequence[int], rate: float, name: str) -> int:
    """Return how many axes of one input are space: all but the channels, which come first."""
    if len(row) < 2:
        raise ValueError(
            f"band of {name} must be None for inputs without axes of space, as in "
            f"[batch, channels, *space], got band {rate:g} and inputs [batch, "
            f"{', '.join(map(str, row))}]"
        )
    return len(row) - 1
