"""Labeled pictures in memory, and how they are changed at random before a network sees them."""

from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pictures with their classes.

    Args:
        train_images: For training and validation.
        train_labels: Their classes.
        test_images: For the test.
        test_labels: Their classes.
        num_classes: Number of classes.

    Raises:
        ValueError: If pictures and classes differ in number.
    """

    train_images: UInt8[Tensor, "train channels height width"]
    train_labels: Int[Tensor, " train"]
    test_images: UInt8[Tensor, "test channels height width"]
    test_labels: Int[Tensor, " test"]
    num_classes: int

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if len(images) != len(labels):
                raise ValueError(
                    f"{part}_images and {part}_labels must be equally many, got {len(images)} and "
                    f"{len(labels)}"
                )


def shift_and_flip(
    images: UInt8[Tensor, "batch channels height width"],
    *,
    max_shift: int,
    flip: bool,
    generator: torch.Generator,
) -> UInt8[Tensor, "batch channels height width"]:
    """Move every picture by a few pixels and mirror half of them.

    Shifts are uniform over whole pixels from ``-max_shift`` to ``max_shift`` in both directions;
    what comes in at the border is black.

    Args:
        images: The pictures.
        max_shift: Largest shift.
        flip: Whether to mirror left and right with probability 1/2.
        generator: Source of the draws.

    Returns:
        New pictures.
    """
    batch, _, height, width = images.shape
    # one draw of each kind whatever is switched on: a switch leaves the other's draws as they are
    shifts = torch.randint(0, 2 * max_shift + 1, (2, batch, 1), generator=generator)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.arange(width).expand(batch, width)
    if flip:
        columns = torch.where(mirrored, columns.flip(-1), columns)
    rows, columns = torch.arange(height) + shifts[0], columns + shifts[1]
    padded = torch.nn.functional.pad(images, [max_shift] * 4)
    picture = torch.arange(batch)[:, None, None]
    # the indexed axes come first: [batch, height, width, channels]
    return padded[picture, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
