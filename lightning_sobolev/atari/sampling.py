"""Batches for runs that are compared at equal numbers of steps, whatever the number of states."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class StepSampler(DistributedSampler[Any]):
    """Yields whole batches of positions, a fixed number of them per epoch.

    The batches are cut from an endless stream of shuffled passes over all positions, so every batch
    is full and every position comes up equally often (within one pass). Pass p is shuffled by
    (seed, p) alone, and all processes cut their own batches from the same stream: no position is
    given to two of them in a pass, and a resumed run goes on with the batches that were to come.

    A subclass of ``DistributedSampler`` only because Lightning then leaves it in its place.

    Args:
        num_items: Positions to draw from.
        batch_size: Positions in the batch of one process.
        steps: Batches per epoch; None takes as many as fit into one pass.
        seed: Seed of the shuffles.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there are fewer positions than all processes take in a step.
    """

    def __init__(
        self,
        num_items: int,
        *,
        batch_size: int,
        steps: int | None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        width = batch_size * world_size
        if batch_size < 1 or num_items < width:
            raise ValueError(
                f"batch_size must be in 1..{num_items // world_size} for {num_items} states and "
                f"{world_size} processes, got {batch_size}"
            )
        super().__init__(range(num_items), num_replicas=world_size, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.num_items = num_items
        self.batch_size = batch_size
        self.steps = num_items // width if steps is None else steps
        self.skip = 0
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.steps

    def __iter__(self) -> Iterator[Int[np.ndarray, " batch"]]:
        """Cut the batches of the present epoch."""
        first = self.epoch * self.steps
        skip, self.skip = self.skip, 0
        for step in range(first + skip, first + self.steps):
            yield self._positions((step * self.num_replicas + self.rank) * self.batch_size)

    def _positions(self, start: int) -> Int[np.ndarray, " batch"]:
        passes, offsets = np.divmod(np.arange(start, start + self.batch_size), self.num_items)
        parts = [self._pass(int(p))[offsets[passes == p]] for p in np.unique(passes)]
        return np.concatenate(parts)

    def _pass(self, number: int) -> Int[np.ndarray, " items"]:
        if getattr(self, "_shuffled", (-1,))[0] != number:
            order = np.random.default_rng((self.seed, number)).permutation(self.num_items)
            self._shuffled = (number, order)
        return self._shuffled[1]


class EvenSampler(DistributedSampler[Any]):
    """Yields every position once, in batches; every process gets equally many batches.

    Args:
        num_items: Positions.
        batch_size: Most positions in a batch.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(
        self, num_items: int, *, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(range(num_items), num_replicas=world_size, rank=rank)  # type: ignore[arg-type]
        self._num_items = num_items
        self._num_batches = -(-num_items // (batch_size * world_size))

    def __len__(self) -> int:
        """Batches of one process."""
        return self._num_batches

    def __iter__(self) -> Iterator[Int[np.ndarray, " batch"]]:
        """Cut the positions of this process into batches."""
        own = np.arange(self.rank, self._num_items, self.num_replicas)
        yield from np.array_split(own, self._num_batches)


class StepLoader(DataLoader[Any]):
    """A loader whose sampler yields whole batches, and which resumes in the middle of an epoch.

    Args:
        dataset: Answers a whole batch of positions at once.
        sampler: Yields the batches.
        processed: Says how many batches of the epoch have been trained on. Without it every batch
            that was given counts, also one whose step was broken off.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: StepSampler,
        processed: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(dataset, batch_size=None, sampler=sampler)
        self._given = 0
        self._processed = processed

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the batches of the present epoch and count them."""
        sampler: Any = self.sampler
        self._given = sampler.skip
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Say how far the epoch is.

        Returns:
            Batches of this epoch that need not be given again.
        """
        return {"given": self._given if self._processed is None else self._processed()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skip what an interrupted epoch has had.

        Args:
            state: What :meth:`state_dict` said.
        """
        sampler: Any = self.sampler
        sampler.skip = state["given"] % sampler.steps
