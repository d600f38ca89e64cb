"""Batches of labeled pictures for training, validation and test."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from lightning_sobolev.experiments.images.atari_frames import atari_frames
from lightning_sobolev.experiments.images.fashion_mnist import fashion_mnist
from lightning_sobolev.experiments.images.image_set import ImageSet
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches, Table

IMAGES: Mapping[str, Callable[..., ImageSet]] = {
    "fashion_mnist": fashion_mnist,
    "atari_frames": atari_frames,
}
_SPLIT = 1
_EVALUATED_AT_ONCE = 500


class ImageTable(Table):
    """Pictures that become numbers of mean zero and deviation one when they are asked for.

    Args:
        images: The pictures.
        labels: Their classes.
        mean: Of the training pixels, by channel.
        std: Their deviation, by channel.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "pictures channels height width"],
        labels: Int[Tensor, " pictures"],
        *,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        super().__init__({"x": images, "y": labels})
        self.mean, self.std = mean[:, None, None], std[:, None, None]

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        return {**batch, "x": (batch["x"].to(self.mean.dtype) / 255 - self.mean) / self.std}


class ImageDataModule(pl.LightningDataModule):
    """Fashion-MNIST or Atari frames with a validation split.

    A batch is ``{"x": [batch, channels, height, width], "y": [batch]}``; an epoch is one pass over
    the training pictures, without what is left after the last full batch. Which pictures validate
    does not depend on the seed.

    Args:
        images: ``"fashion_mnist"`` or ``"atari_frames"``.
        root: Folder with the published files; None looks in the system and in the user's cache.
        download: Whether files that are nowhere may be downloaded, or recorded.
        batch_size: Pictures of a training batch.
        num_validation: Pictures that are taken out of the training set.
        num_train: Training pictures that are used; all that are left when None.
        standardize: Whether pixels get mean zero and deviation one; otherwise they are in [0, 1].
        seed: Seed of the order. None takes one from the system.

    Raises:
        ValueError: If a count is out of range or the set is unknown.
    """

    def __init__(
        self,
        images: str = "fashion_mnist",
        root: str | Path | None = None,
        *,
        download: bool = True,
        batch_size: int = 128,
        num_validation: int = 5000,
        num_train: int | None = None,
        standardize: bool = True,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if images not in IMAGES:
            raise ValueError(f"images must be one of {tuple(IMAGES)}, got {images!r}")
        counts = (
            ("batch_size", batch_size),
            ("num_validation", num_validation),
            ("num_train", num_train),
        )
        for name, count in counts:
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.images, self.root, self.download = images, root, download
        self.batch_size, self.num_validation, self.num_train = batch_size, num_validation, num_train
        self.standardize = standardize
        self.seed = torch.Generator().seed() if seed is None else seed
        self.tables: dict[str, ImageTable] = {}

    def prepare_data(self) -> None:
        """Find the files, or download them, before processes start."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the pictures."""
        del stage
        self._load()

    def _load(self) -> None:
        if self.tables:
            return
        images = IMAGES[self.images](self.root, download=self.download)
        order = torch.randperm(len(images.train_labels), generator=generator_for(_SPLIT))
        rest = len(order) - self.num_validation
        if rest < (self.num_train or 1):
            raise ValueError(
                f"num_validation and num_train must leave room for each other in {len(order)} "
                f"pictures, got {self.num_validation} and {self.num_train}"
            )
        train = order[self.num_validation :][: self.num_train]
        validation = order[: self.num_validation]
        pixels = images.train_images[train].movedim(1, 0).flatten(1).float() / 255
        mean, std = pixels.mean(1), pixels.std(1)
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        table = partial(ImageTable, mean=mean, std=std)
        x, y = images.train_images, images.train_labels
        self.tables = {
            "train": table(x[train], y[train]),
            "val": table(x[validation], y[validation]),
            "test": table(images.test_images, images.test_labels),
        }

    def train_dataloader(self) -> ResumableLoader:
        """Return one shuffled pass over the training pictures."""
        table = self.tables["train"]
        batches = ShuffledBatches(
            len(table), self.batch_size, None, seed=self.seed, **self._share()
        )
        return ResumableLoader(table, batches, self.trainer)

    def val_dataloader(self) -> ResumableLoader:
        """Return every validation picture once."""
        return self._ordered("val")

    def test_dataloader(self) -> ResumableLoader:
        """Return every test picture once."""
        return self._ordered("test")

    def _ordered(self, stage: str) -> ResumableLoader:
        table = self.tables[stage]
        return ResumableLoader(
            table, OrderedBatches(len(table), _EVALUATED_AT_ONCE, **self._share())
        )

    def _share(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
