"""Layers that change what a network computes, and functions that put them into a network."""

from lightning_sobolev.layers.band_limits import BandLimitedConv1d, BandLimitedConv2d, band_limit
from lightning_sobolev.layers.noise import (
    NoiseInjection,
    inject_noise,
    noise_penalty,
    switch_evaluation_noise,
)

__all__ = [
    "BandLimitedConv1d", "BandLimitedConv2d", "NoiseInjection", "band_limit", "inject_noise",
    "noise_penalty", "switch_evaluation_noise",
]  # fmt: skip
