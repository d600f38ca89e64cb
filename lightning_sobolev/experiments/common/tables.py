"""What data modules share whose points lie in memory."""

from abc import abstractmethod
from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_sobolev._checks import require
from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches, Table


class TableDataModule(pl.LightningDataModule):
    """Shuffled batches of a table of training points, and every test point once.

    Without ``steps_per_epoch`` an epoch is one pass.
    """

    rows_at_once = 1024  # of validation and test

    def __init__(
        self,
        batch_size: int,
        steps_per_epoch: int | None,
        seed: int | None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        steps = 1 if steps_per_epoch is None else steps_per_epoch
        check_counts(1, batch_size=batch_size, steps_per_epoch=steps)
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self.seed = torch.Generator().seed() if seed is None else seed
        self.dtype = torch.get_default_dtype() if dtype is None else dtype

    @abstractmethod
    def training_points(self) -> Table:
        """Return what is trained on."""

    @abstractmethod
    def test_points(self) -> Table:
        """Return what is tested on."""

    def train_dataloader(self) -> ResumableLoader:
        """Return an epoch of shuffled batches."""
        table = self.training_points()
        batches = ShuffledBatches(
            len(table), self.batch_size, self.steps_per_epoch, seed=self.seed, **self._share()
        )
        return ResumableLoader(table, batches, self.trainer)

    def test_dataloader(self) -> ResumableLoader:
        """Return every test point once."""
        return self.ordered(self.test_points())

    def ordered(self, table: Table) -> ResumableLoader:
        """Return every row of a table once."""
        batches = OrderedBatches(len(table), self.rows_at_once, **self._share())
        return ResumableLoader(table, batches)

    def table(self, columns: Mapping[str, Tensor]) -> Table:
        """Return columns in the floating-point type of the batches."""
        return Table({name: column.to(self.dtype) for name, column in columns.items()})

    def _share(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


def check_counts(least: int, **counts: int) -> None:
    """Refuse counts that are too small."""
    for name, count in counts.items():
        require(count >= least, name, f"at least {least}", count)
