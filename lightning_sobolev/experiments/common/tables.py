"""What data modules share whose points lie in memory."""

from abc import abstractmethod

import lightning.pytorch as pl

from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches, Table


class TableDataModule(pl.LightningDataModule):
    """Shuffled batches of a table of training points, and every test point once.

    Args:
        batch_size: Points of a training batch; all of them when there are fewer.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of the order.

    Raises:
        ValueError: If a count is too small.
    """

    def __init__(self, *, batch_size: int, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        for name, count in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed

    @abstractmethod
    def training_points(self) -> Table:
        """Return what is trained on."""

    @abstractmethod
    def test_points(self) -> Table:
        """Return what is tested on."""

    def train_dataloader(self) -> ResumableLoader:
        """Return ``steps_per_epoch`` shuffled batches."""
        table = self.training_points()
        batches = ShuffledBatches(
            len(table), self.batch_size, self.steps_per_epoch, seed=self.seed, **self._share()
        )
        return ResumableLoader(table, batches, self.trainer)

    def test_dataloader(self) -> ResumableLoader:
        """Return every test point once."""
        return self._ordered(self.test_points())

    def _ordered(self, table: Table) -> ResumableLoader:
        return ResumableLoader(table, OrderedBatches(len(table), 1024, **self._share()))

    def _share(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
