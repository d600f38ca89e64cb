"""Layers that change what a network computes, and how they are put into a network that is there."""

from lightning_sobolev.layers.noise import (
    NoiseInjection,
    inject_noise,
    noise_penalty,
    switch_evaluation_noise,
)

__all__ = ["NoiseInjection", "inject_noise", "noise_penalty", "switch_evaluation_noise"]
