"""Batches of a table that is small enough to lie in memory.

One fancy index per batch replaces per-row items and their collation, and an epoch is a number of
steps instead of one pass: with twenty rows, one pass would be a single step, and the book-keeping
around an epoch would cost more than the step.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_sobolev.functional.projections import generator_for


class Table(Dataset[dict[str, Tensor]]):
    """Columns of equal length; indexing with many rows gives a batch.

    Args:
        columns: Name to tensor ``[rows, ...]``.

    Raises:
        ValueError: If the columns differ in length.
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


class ShuffledRows(Sampler[Tensor]):
    """Row numbers of ``num_batches`` batches an epoch, each cut from a shuffled pass over all rows.

    Batch number n is a pure function of (seed, n), so a resumed run goes on with the batches that
    were to come. Every process draws the same batches and keeps every ``world_size``-th row, so
    that the training does not depend on how many processes share it.

    Args:
        num_rows: Rows of the table.
        batch_size: Rows of a batch over all processes; a table with fewer rows is its own batch.
        num_batches: Batches of an epoch.
        seed: Seed of the order. Epochs go on from one another.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_batches: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.num_batches = num_batches
        self.given = 0
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._shuffled: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Tensor]:
        end = (self.given // self.num_batches + 1) * self.num_batches
        while self.given < end:
            self.given += 1
            yield self._rows(self.given - 1)[self._rank :: self._world_size]

    def _rows(self, number: int) -> Int[Tensor, " batch"]:
        # What is left of a pass after its last full batch is dropped: every batch is full.
        number_of_pass, place = divmod(number, self.num_rows // self.batch_size)
        if self._shuffled[0] != number_of_pass:
            generator = generator_for(self._seed, number_of_pass)
            order = torch.randperm(self.num_rows, generator=generator)
            self._shuffled = (number_of_pass, order)
        return self._shuffled[1][place * self.batch_size : (place + 1) * self.batch_size]


class OrderedRows(Sampler[Tensor]):
    """Every row once, in order; this process's share of it.

    Args:
        num_rows: Rows of the table.
        batch_size: Rows of a batch of one process.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, num_rows: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.given = 0
        self.batches = torch.split(torch.arange(rank, num_rows, world_size), batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


class TableLoader(DataLoader[dict[str, Tensor]]):
    """Asks a table once for each batch of a sampler; resumes in the middle of an epoch.

    Args:
        table: What is served.
        rows: Yields the row numbers of whole batches.
        processed: Says how many batches of the epoch have been trained on. Without it every batch
            that was given counts, also one whose step was broken off.
    """

    def __init__(
        self,
        table: Table,
        rows: ShuffledRows | OrderedRows,
        processed: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(table, sampler=rows, batch_size=None)
        self._rows = rows
        self._processed = processed
        self._before_epoch = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        # A generator: this runs at the first batch, when the trainer has begun to count anew.
        self._note_beginning()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return how many batches need not be given again, over all epochs."""
        if self._processed is None:
            return {"given": self._rows.given}
        return {"given": self._before_epoch + self._processed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were given."""
        self._rows.given = state["given"]
        self._note_beginning()

    def _note_beginning(self) -> None:
        if self._processed is not None:
            self._before_epoch = self._rows.given - self._processed()
