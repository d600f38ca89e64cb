"""Batches of labeled images, or signals, for training, validation and test."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.tables import check_counts
from lightning_sobolev.experiments.images.atari_frames import atari_frames
from lightning_sobolev.experiments.images.fashion_mnist import fashion_mnist
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled, SplitDataModule
from lightning_sobolev.experiments.images.networks import Standardize
from lightning_sobolev.functional.projections import generator_for
from lightning_sobolev.loading import Table

IMAGES: Mapping[str, Callable[..., ImageSet]] = {
    "fashion_mnist": fashion_mnist,
    "atari_frames": atari_frames,
}


class ImageTable(Table):
    """Images as whole levels that become pixels in [0, 1], and are standardized, when asked for."""

    def __init__(self, images: Labeled, standardize: Standardize) -> None:
        super().__init__({"x": images.images, "y": images.labels})
        self.standardize = standardize

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        batch = super().__getitem__(rows)
        return {**batch, "x": self.standardize(batch["x"].to(torch.float32) / 255)}


class ImageDataModule(SplitDataModule):
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
    """

    rows_at_once = 500

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
        super().__init__(batch_size=batch_size, steps_per_epoch=None, seed=seed)
        require(images in IMAGES, "images", f"one of {tuple(IMAGES)}", images)
        counts = {"num_validation": num_validation, "num_train": num_train}
        check_counts(1, **{name: one for name, one in counts.items() if one is not None})
        self.images, self.root, self.download = images, root, download
        self.num_validation, self.num_train = num_validation, num_train
        self.standardize = standardize
        self.tables: dict[str, ImageTable] = {}
        self.classes: tuple[str, ...] = ()

    def prepare_data(self) -> None:
        """Find the files, or download them, before processes start."""
        self.setup()

    @override
    def setup(self, stage: str | None = None) -> None:
        if self.tables:
            return
        found = IMAGES[self.images](self.root, download=self.download)
        images, labels = found.train
        order = torch.randperm(len(labels), generator=generator_for(1))
        if len(order) - self.num_validation < (self.num_train or 1):
            text = f"must leave room for each other in {len(order)} images"
            got = f"{self.num_validation} and {self.num_train}"
            raise ValueError(f"num_validation and num_train {text}, got {got}")
        validation = order[: self.num_validation]
        train = order[self.num_validation :][: self.num_train]
        pixels = images[train].movedim(1, 0).flatten(1).float() / 255
        mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
        if not self.standardize:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        parts = {"train": train, "val": validation}
        labeled = {stage: Labeled(images[rows], labels[rows]) for stage, rows in parts.items()}
        labeled["test"] = found.test
        self.tables = {k: ImageTable(part, Standardize(mean, std)) for k, part in labeled.items()}
        self.classes = found.classes
