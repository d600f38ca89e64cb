"""Layers that replace torch's own, and functions that put them into a network."""

from lightning_sobolev.layers.band_limits import (
    BandLimitedConv1d,
    BandLimitedConv2d,
    band_limit,
)

__all__ = ["BandLimitedConv1d", "BandLimitedConv2d", "band_limit"]
