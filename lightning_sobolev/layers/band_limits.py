r"""Convolutions that see the low frequencies of their input alone.

A convolution is a product of spectra, :math:`y = \mathcal F^{-1}(\mathcal F x \cdot
\overline{\mathcal F w})`. What is cut from both spectra is not there: smaller tensors are
multiplied and kept for the backward pass, and the gradients in x and w are band-limited as well.

Source:
    Dziedzic, Paparrizos, Krishnan, Elmore and Franklin 2019, Band-limited Training and Inference
    for Convolutional Neural Networks (PMLR 97). We deviate in two places that change nothing at
    rate 0: the transform is as long as the padded input, which is all that the outputs need, where
    theirs adds zeros for the whole output and more up to a power of two; and the filter's spectrum
    is evaluated at the kept frequencies alone. Maps need not be square.
"""

import math
from typing import Any, TypeVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.conv import _ConvNd

from lightning_sobolev.functional.band_limits import (
    check_rate,
    cut_spectrum,
    filled_signal,
    kept,
    kept_by_energy,
)

_Module = TypeVar("_Module", bound=nn.Module)


class _BandLimited:
    rate: float
    energy: float | None

    def __init__(
        self, *args: Any, rate: float = 0.0, energy: float | None = None, **kwargs: Any
    ) -> None:
        _check(rate, energy)
        super().__init__(*args, **kwargs)
        self.rate, self.energy = rate, energy

    def forward(self: Any, input: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the convolution."""
        return _convolved(self, input, self.rate, self.energy)

    def extra_repr(self) -> str:
        """Return the settings, the band included."""
        return f"{super().extra_repr()}, rate={self.rate}, energy={self.energy}"  # type: ignore[misc]


class BandLimitedConv1d(_BandLimited, nn.Conv1d):
    """``nn.Conv1d`` on a cut spectrum; with the arguments of :class:`BandLimitedConv2d`."""


class BandLimitedConv2d(_BandLimited, nn.Conv2d):
    r"""``nn.Conv2d`` on a cut spectrum.

    At rate 0 this is ``nn.Conv2d`` up to rounding, derivatives of every order included. Above, the
    input is filtered, and so is the filter: it then reaches over the whole map, round its edges.
    Strides take every n-th place of the whole result; padding of every mode, dilation and groups
    are those of torch. Half precision is computed in float32, with autocast or without.

    Costs Fourier transforms of the input and of the output, and a complex product of
    ``[batch, in] x [in, out]`` for each kept frequency, whatever the size of the kernel and the
    stride. On a CPU that is slower than torch's own for small kernels at small rates, and takes
    more memory (docs/band-limits.md).

    With ``energy`` the number of kept frequencies follows from each batch: rows of a batch are then
    not independent, which derivative matching assumes, and the layer does not compile whole.

    Args:
        args: As of ``nn.Conv2d``.
        rate: Percentage of the spectrum that is cut; the same share of both axes.
        energy: Percentage of the input's energy that is kept, in place of a rate.
        kwargs: As of ``nn.Conv2d``.

    Raises:
        ValueError: If a percentage is out of range, or both are given.

    Example:
        >>> layer = BandLimitedConv2d(3, 8, 5, padding=2, rate=50.0)
        >>> layer(torch.ones(2, 3, 20, 30)).shape
        torch.Size([2, 8, 20, 30])
    """


_LIMITED: dict[type[_ConvNd], type[_ConvNd]] = {
    nn.Conv1d: BandLimitedConv1d,
    nn.Conv2d: BandLimitedConv2d,
}
_PLAIN = {limited: plain for plain, limited in _LIMITED.items()}


def band_limit(module: _Module, rate: float = 0.0, *, energy: float | None = None) -> _Module:
    """Return the network with every convolution band-limited in place; rate 0 undoes it.

    A layer changes its class and nothing else: it stays the same object, with its name, parameters
    and hooks, so that optimizers, checkpoints and shared layers go on as before. A network that is
    band-limited already gets the new rate, which is a setting and not in a state dict.

    Args:
        module: A network, or one convolution.
        rate: Percentage of the spectrum that is cut, the same in every layer.
        energy: Percentage of each layer's input energy that is kept, in place of a rate.

    Raises:
        ValueError: If a percentage is out of range, the module has no convolution, or one of
            another kind (three axes, transposed, lazy, a subclass): nothing is changed then.

    Example:
        >>> net = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ReLU())
        >>> band_limit(net, 50.0)[0]
        BandLimitedConv1d(1, 4, kernel_size=(5,), stride=(1,), rate=50.0, energy=None)
        >>> band_limit(net, 0.0)[0]
        Conv1d(1, 4, kernel_size=(5,), stride=(1,))
    """
    _check(rate, energy)
    found = {name: m for name, m in module.named_modules() if isinstance(m, _ConvNd)}
    if not found:
        raise ValueError(f"module must contain convolutions, got {type(module).__name__} with none")
    for name, layer in found.items():
        if type(layer) not in (*_LIMITED, *_PLAIN):
            raise ValueError(
                f"layer {name!r} must be an nn.Conv1d or nn.Conv2d to be band-limited, "
                f"got {type(layer).__name__}"
            )
    for layer in found.values():
        plain = _PLAIN.get(type(layer), type(layer))
        if rate == 0.0 and energy is None:
            layer.__class__ = plain
            vars(layer).pop("rate", None), vars(layer).pop("energy", None)
        else:
            layer.__class__ = _LIMITED[plain]
            vars(layer).update(rate=rate, energy=energy)
    return module


def _check(rate: float, energy: float | None) -> None:
    check_rate(rate)
    if energy is None:
        return
    if not 0.0 < energy <= 100.0:
        raise ValueError(f"energy must be in (0, 100], in percent, got {energy!r}")
    if rate != 0.0:
        raise ValueError(f"rate must be 0 where energy is given, got {rate} and energy {energy}")


def _convolved(conv: nn.Conv1d | nn.Conv2d, x: Tensor, rate: float, energy: float | None) -> Tensor:
    axes = len(conv.kernel_size)
    if x.ndim not in (axes + 1, axes + 2) or x.shape[-axes - 1] != conv.in_channels:
        raise ValueError(
            f"input must have shape [batch, {conv.in_channels}, *space] with {axes} axes of space, "
            f"got {list(x.shape)}"
        )
    with torch.autocast(x.device.type, enabled=False):
        # Fourier transforms know no half precision on a CPU.
        wide = torch.promote_types(x.dtype, torch.float32)
        padded = _padded(conv, (x if x.ndim == axes + 2 else x[None]).to(wide))
        sizes = padded.shape[-axes:]
        reach = [d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(size < extent for size, extent in zip(sizes, reach, strict=True)):
            raise ValueError(f"input, padded, must be at least {reach}, got {list(sizes)}")
        counts = kept(sizes, rate) if energy is None else kept_by_energy(padded, energy, axes)
        spectrum = cut_spectrum(padded, counts)
        product = _product(spectrum, _filter_spectrum(conv, sizes, spectrum), conv.groups)
        y = filled_signal(product, sizes)
        # Behind these places the periodic signal begins again.
        for axis, (extent, stride) in enumerate(zip(reach, conv.stride, strict=True)):
            y = y.narrow(axis - axes, 0, sizes[axis] - extent + 1)
            y = y.unfold(axis - axes, 1, stride).squeeze(-1)
        if conv.bias is not None:
            y = y + conv.bias.to(wide).reshape(-1, *[1] * axes)
    return (y if x.ndim == axes + 2 else y[0]).to(x.dtype)


def _padded(conv: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    margins: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):  # pad() begins with the last axis
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if conv.padding == "same":
            margins += [total // 2, total - total // 2]
        elif conv.padding == "valid":
            margins += [0, 0]
        else:
            margins += [int(conv.padding[axis])] * 2
    return pad(x, margins, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)


def _filter_spectrum(
    conv: nn.Conv1d | nn.Conv2d, sizes: torch.Size, like: Complex[Tensor, "*spectra"]
) -> Complex[Tensor, "*spectra"]:
    # The conjugate one of the dilated kernel, at the frequencies of ``like``.
    spectrum = conv.weight.to(like.dtype)
    axes, device = len(sizes), like.device
    for axis in range(axes):
        size, count = sizes[axis], like.shape[axis - axes]
        frequencies = torch.arange(count, device=device)
        if axis < axes - 1 and count < size:  # the upper half are the negative ones
            frequencies = torch.where(frequencies <= count // 2, frequencies, frequencies - count)
        taps = torch.arange(conv.kernel_size[axis], device=device) * conv.dilation[axis]
        turns = (taps[:, None] * frequencies % size).double() * (2 * math.pi / size)
        waves = torch.polar(torch.ones_like(turns), turns).to(like.dtype)
        spectrum = torch.tensordot(spectrum, waves, ([axis - axes], [0])).movedim(-1, axis - axes)
    return spectrum


def _product(x: Tensor, w: Tensor, groups: int) -> Complex[Tensor, "*spectra"]:
    x_groups = x.reshape(len(x), groups, x.shape[1] // groups, -1)
    w_groups = w.reshape(groups, len(w) // groups, w.shape[1], -1)
    product = torch.einsum("bgif,goif->bgof", x_groups, w_groups)
    return product.reshape(len(x), len(w), *x.shape[2:])
