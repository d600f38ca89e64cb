"""Labeled pictures in memory."""

from dataclasses import dataclass

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
