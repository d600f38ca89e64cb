"""Images in memory with their classes, and where they are kept on a disk."""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int, Num
from torch import Tensor


class Labeled(NamedTuple):
    """Images with their classes: whole levels 0 to 255, or pixels in 0..1."""

    images: Num[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]


class ImageSet(NamedTuple):
    """A published set; ``train`` is for training and validation, ``classes`` are their names."""

    train: Labeled
    test: Labeled
    classes: tuple[str, ...]


def cache_folder() -> Path:
    """Return where sets are kept when no folder is named."""
    return Path.home() / ".cache" / "lightning_sobolev"
