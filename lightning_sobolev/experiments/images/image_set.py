"""Images in memory with their classes, and where they are kept on a disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Int, Num
from torch import Tensor
from typing_extensions import override

from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.loading import ResumableLoader, Table


class Labeled(NamedTuple):
    """Images with their classes: whole levels 0 to 255, or pixels in 0..1."""

    images: Num[Tensor, "images channels height width"]
    labels: Int[Tensor, " images"]


class ImageSet(NamedTuple):
    """A published set; ``train`` is for training and validation, ``classes`` are their names."""

    train: Labeled
    test: Labeled
    classes: tuple[str, ...]


class SplitDataModule(TableDataModule):
    """A set whose parts are the tables ``train``, ``val`` and ``test``."""

    tables: Mapping[str, Table]

    @override
    def training_points(self) -> Table:
        return self.tables["train"]

    @override
    def test_points(self) -> Table:
        return self.tables["test"]

    @override
    def val_dataloader(self) -> ResumableLoader:
        return self.ordered(self.tables["val"])


def cache_folder() -> Path:
    """Return where sets are kept when no folder is named."""
    return Path.home() / ".cache" / "lightning_sobolev"
