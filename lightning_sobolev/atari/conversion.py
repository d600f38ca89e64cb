"""Observations of other people's data sets as the pictures that are recorded here."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from lightning_sobolev.atari.environments import AtariSettings

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, within one level of the emulator's own grey
_SMALLEST_SIDE = 32  # a shorter axis counts pictures or colors


def to_pictures(
    observations: Shaped[np.ndarray, "step *shape"], settings: AtariSettings
) -> UInt8[np.ndarray, "step height width"]:
    """Find the newest picture of every observation, grey and of the right size.

    Understood are grey pictures ``[height, width]`` with or without an axis of length 1, colored
    ones ``[height, width, 3]``, and stacks of ``settings.stack_num`` grey pictures with the oldest
    first, along the first or the last axis. A picture of another size is averaged over areas.

    Args:
        observations: What was seen in consecutive steps of one episode.
        settings: Size of the pictures and of a stack.

    Returns:
        One picture for each step.

    Raises:
        ValueError: If the observations are of another kind or stacks do not follow each other.
    """
    if observations.dtype != np.uint8 or observations.ndim not in (3, 4):
        raise ValueError(
            "observations must be uint8 [height, width], [height, width, 3] or stacks of "
            f"{settings.stack_num} pictures, got {observations.dtype} "
            f"{list(observations.shape[1:])}"
        )
    pictures = observations if observations.ndim == 3 else _newest(observations, settings)
    size = (settings.img_height, settings.img_width)
    return pictures if pictures.shape[1:] == size else _average_areas(pictures, size)


def _newest(
    observations: UInt8[np.ndarray, "step a b c"], settings: AtariSettings
) -> UInt8[np.ndarray, "step height width"]:
    first, last = observations.shape[1], observations.shape[-1]
    if last < _SMALLEST_SIDE <= first:
        if last == 3 and settings.stack_num != 3:
            return _to_bytes(observations @ np.array(_LUMINANCE))
        observations, first = np.moveaxis(observations, -1, 1), last
    if first == 1:
        return observations[:, 0]
    if first != settings.stack_num:
        raise ValueError(
            f"observations must be stacks of {settings.stack_num} pictures, got {first}: "
            "set stack_num in settings"
        )
    if not np.array_equal(observations[1:, :-1], observations[:-1, 1:]):
        raise ValueError(
            "observations must be stacks of the last pictures, each moved on by one picture: these "
            "cannot be rebuilt from single pictures"
        )
    return observations[:, -1]


def _average_areas(
    pictures: UInt8[np.ndarray, "step rows columns"], size: tuple[int, int]
) -> UInt8[np.ndarray, "step height width"]:
    rows, columns = (_areas(old, new) for old, new in zip(pictures.shape[1:], size, strict=True))
    return _to_bytes(rows @ pictures.astype(np.float64) @ columns.T)


def _areas(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """How much of every old pixel lies in every new one; rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    low, high = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)
    overlap = np.minimum(high, pixels + 1) - np.maximum(low, pixels)
    weights: np.ndarray = np.maximum(overlap, 0.0) * (new / old)
    return weights


def _to_bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    rounded: np.ndarray = np.rint(values).astype(np.uint8)
    return rounded
