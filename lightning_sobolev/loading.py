"""Loaders that resume in the middle of an epoch and deal rows to processes.

Batch number n is a pure function of (seed, n). A resumed run therefore goes on with the batches
that were to come, and training does not depend on how many processes share it: every process draws
the same batches and keeps every ``world_size``-th row.

    table = Table({"x": x, "y": y})
    batches = ShuffledBatches(len(table), 100, steps=500, seed=0)
    trainer.fit(module, ResumableLoader(table, batches, trainer))
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_sobolev._checks import require
from lightning_sobolev.functional.projections import generator_for


class Table(Dataset[dict[str, Tensor]]):
    """Columns ``[rows, ...]`` of equal length in memory; indexing with many rows gives a batch.

    Raises:
        ValueError: If there is no column, or the columns differ in length.
    """

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns must have one common length, got {lengths}")
        self.columns = dict(columns)
        self.num_rows = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        return {name: column[rows] for name, column in self.columns.items()}


class Batches(DistributedSampler[Any]):
    """What both orders share: row numbers of whole batches, and this process's part of them.

    Every process has equally many batches and no share is empty, so that none runs out before the
    others. Lightning leaves a ``DistributedSampler`` in its place, and tells it the epoch.
    """

    start: int
    """Number of the batch that comes next, counted over all epochs."""

    def __init__(
        self, num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        for name, count in (("num_rows", num_rows), ("batch_size", batch_size)):
            fits, expected = count >= max(world_size, 1), f"at least 1 for each of {world_size}"
            require(fits, name, f"{expected} processes", count)
        super().__init__(range(num_rows), num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        self.num_rows, self.batch_size = num_rows, batch_size
        self.start = 0

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batch(self, number: int) -> Int[Tensor, " batch"]:
        """Return the rows of batch ``number`` over all processes, counted over all epochs."""

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch, or stay where a resumed one goes on."""
        if self.start // len(self) != epoch:
            self.start = epoch * len(self)

    def __iter__(self) -> Iterator[Int[Tensor, " share"]]:
        numbers = range(self.start, (self.start // len(self) + 1) * len(self))
        self.start = numbers.stop  # whoever begins anew begins an epoch
        for number in numbers:
            yield self.batch(number)[self.rank :: self.num_replicas]


class ShuffledBatches(Batches):
    """Full batches that are cut from shuffled passes over all rows.

    What is left of a pass after its last full batch is dropped. An epoch is a number of steps, not
    one pass, so that runs on different numbers of rows are compared at equal numbers of steps.

    Args:
        num_rows: Rows to draw from.
        batch_size: Rows of a batch over all processes; fewer rows than that are one batch.
        steps: Batches of an epoch. None takes those of one pass.
        seed: Seed of the order.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If a count is too small, or the processes' shares would differ in size.
    """

    def __init__(
        self, num_rows: int, batch_size: int, steps: int | None, *,
        seed: int, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(num_rows, min(batch_size, num_rows), rank=rank, world_size=world_size)
        require(steps is None or steps >= 1, "steps", "at least 1", steps)
        if self.batch_size % world_size:
            raise ValueError(
                f"batch_size (at most num_rows) must be a multiple of the {world_size} processes, "
                f"so that every row counts alike, got {self.batch_size}"
            )
        self.seed = seed
        self._per_pass = num_rows // self.batch_size
        self._steps = self._per_pass if steps is None else steps
        self._shuffled: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return self._steps

    def batch(self, number: int) -> Int[Tensor, " batch"]:
        """Return the rows of batch ``number``, counted over all epochs."""
        number_of_pass, place = divmod(number, self._per_pass)
        if self._shuffled[0] != number_of_pass:
            generator = generator_for(self.seed, number_of_pass)
            self._shuffled = number_of_pass, torch.randperm(self.num_rows, generator=generator)
        return self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]


class OrderedBatches(Batches):
    """Every row once an epoch, in order; for validation and test.

    The last batch has what is left; what is too little for all processes joins the one before it.

    Raises:
        ValueError: If there are fewer rows, or a smaller batch, than processes.
    """

    def __init__(
        self, num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(num_rows, batch_size, rank=rank, world_size=world_size)
        count, rest = divmod(num_rows, batch_size)
        self._batches = torch.arange(num_rows).tensor_split(
            [batch_size * n for n in range(1, count + (rest >= world_size))]
        )

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, number: int) -> Int[Tensor, " batch"]:
        """Return the rows of batch ``number``; the same in every epoch."""
        return self._batches[number % len(self)]


class ResumableLoader(DataLoader[Any]):
    """Asks a dataset once for each batch, and resumes in the middle of an epoch.

    Args:
        dataset: Indexed with the row numbers of a whole batch.
        batches: Yields the row numbers.
        trainer: Who trains. What comes next then follows from how many batches were trained on: a
            batch whose step was broken off is given again, and neither short epochs nor new loaders
            change the order. Without it every batch that was given counts.
    """

    def __init__(
        self, dataset: Dataset[Any], batches: Batches, trainer: pl.Trainer | None = None
    ) -> None:
        super().__init__(dataset, sampler=batches, batch_size=None)
        self._batches, self._trainer = batches, trainer
        self._given = batches.start

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: this runs at the first batch, when the trainer has told the epoch.
        if self._trainer is not None:
            self._batches.start = self._trained_on()
            yield from islice(self._endless(), len(self))
            return
        self._given = self._batches.start
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches need not be given again, over all epochs."""
        return {"given": self._given if self._trainer is None else self._trained_on()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that need not be given again."""
        self._batches.start = self._given = state["given"]

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from super().__iter__()

    def _trained_on(self) -> int:
        assert self._trainer is not None
        progress: Any = self._trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)
