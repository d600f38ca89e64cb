"""Batches of labeled images, or signals, for training, validation and test."""

from collections.abc import Callable, Mapping
from pathlib import Path

import lightning.pytorch as pl
import torch
from jaxtyping import Int
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.images.atari_frames import atari_frames
from lightning_sobolev.experiments.images.fashion_mnist import fashion_mnist
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled
from lightning_sobolev.experiments.images.networks import Standardize
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches, Table

IMAGES: Mapping[str, Callable[..., ImageSet]] = {
    "fashion_mnist": fashion_mnist,
    "atari_frames": atari_frames,
}
_SPLIT = 1
_EVALUATED_AT_ONCE = 500


class ImageTable(Table):
    """Images as whole levels that become pixels in [0, 1], and are standardized, when asked for."""

    def __init__(self, images: Labeled, standardize: Standardize) -> None:
        super().__init__({"x": images.images, "y": images.labels})
        self.standardize = standardize

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        return {**batch, "x": self.standardize(batch["x"].to(torch.float32) / 255)}


class ImageDataModule(pl.LightningDataModule):
    """Fashion-MNIST or Atari frames with a validation split.

    A batch is ``{"x": [batch, channels, height, width], "y": [batch]}``; an epoch is one pass over
    the training images, without what is left after the last full batch. Which images validate does
    not depend on the seed. ``classes`` are the names of the classes.

    Args:
        images: ``"fashion_mnist"`` or ``"atari_frames"``.
        root: Folder with the published files; None looks in the system and in the user's cache.
        download: Whether files that are nowhere may be downloaded, or recorded.
        batch_size: Images of a training batch, over all processes.
        num_validation: Images that are taken out of the training set.
        num_train: Training images that are used; all that are left when None.
        standardize: Whether pixels get mean zero and standard deviation one, or stay in [0, 1].
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
        require(images in IMAGES, "images", f"one of {tuple(IMAGES)}", images)
        require(batch_size >= 1, "batch_size", "at least 1", batch_size)
        require(num_validation >= 1, "num_validation", "at least 1", num_validation)
        require(num_train is None or num_train >= 1, "num_train", "at least 1 or None", num_train)
        self.images, self.root, self.download = images, root, download
        self.batch_size, self.num_validation, self.num_train = batch_size, num_validation, num_train
        self.standardize = standardize
        self.seed = torch.Generator().seed() if seed is None else seed
        self.tables: dict[str, ImageTable] = {}
        self.classes: tuple[str, ...] = ()

    def prepare_data(self) -> None:
        """Find the files, or download them, before processes start."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Read and split the images."""
        del stage
        if self.tables:
            return
        found = IMAGES[self.images](self.root, download=self.download)
        images, labels = found.train
        order = torch.randperm(len(labels), generator=generator_for(_SPLIT))
        if len(order) - self.num_validation < (self.num_train or 1):
            raise ValueError(
                f"num_validation and num_train must leave room for each other in {len(order)} "
                f"images, got {self.num_validation} and {self.num_train}"
            )
        validation = order[: self.num_validation]
        train = order[self.num_validation :][: self.num_train]
        pixels = images[train].movedim(1, 0).flatten(1).float() / 255
        mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        parts = {
            "train": Labeled(images[train], labels[train]),
            "val": Labeled(images[validation], labels[validation]),
            "test": found.test,
        }
        standardize = Standardize(mean, std)
        self.tables = {stage: ImageTable(part, standardize) for stage, part in parts.items()}
        self.classes = found.classes

    def train_dataloader(self) -> ResumableLoader:
        """Return one shuffled pass over the training images."""
        table = self.tables["train"]
        share = self._share()
        batches = ShuffledBatches(len(table), self.batch_size, None, seed=self.seed, **share)
        return ResumableLoader(table, batches, self.trainer)

    def val_dataloader(self) -> ResumableLoader:
        """Return every validation image once."""
        return self._ordered("val")

    def test_dataloader(self) -> ResumableLoader:
        """Return every test image once."""
        return self._ordered("test")

    def _ordered(self, stage: str) -> ResumableLoader:
        table = self.tables[stage]
        batches = OrderedBatches(len(table), _EVALUATED_AT_ONCE, **self._share())
        return ResumableLoader(table, batches)

    def _share(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
