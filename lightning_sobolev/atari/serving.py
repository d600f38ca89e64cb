"""What all data modules of recorded states share: loaders, samplers, the mean state."""

from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_sobolev.atari.sampling import EvenSampler, StepLoader, StepSampler
from lightning_sobolev.atari.states import RecordedStates

_EVALUATION_BATCH = 256
_MEAN_STATES = 2_000  # the standard error of a pixel in 0..1 is then at most 0.011


class StatesDataModule(pl.LightningDataModule):
    """Serves training, validation and test states that a subclass finds in ``setup``.

    Every epoch is ``steps_per_epoch`` full batches, so that runs on different fractions are
    compared at equal numbers of steps. Under several processes every one takes batches of its own,
    the same split whatever the trainer's sampler setting.

    Args:
        batch_size: Training states in the batch of one process.
        steps_per_epoch: Batches per epoch; None takes one pass over the chosen states.
        seed: Seed of the order.
    """

    def __init__(self, *, batch_size: int, steps_per_epoch: int | None, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._data: dict[str, RecordedStates] = {}

    @property
    def num_train_states(self) -> int:
        """Training states that are served; there after ``setup``."""
        return len(self._dataset("train"))

    def mean_state(self) -> Float[Tensor, "stack height width"]:
        """Average the chosen training states, or the first 2,000 of them.

        Returns:
            The mean picture of each place in the stack, pixels in 0..1.
        """
        dataset = self._dataset("train")
        count = min(len(dataset), _MEAN_STATES)
        total = sum(
            dataset[np.arange(start, min(start + _EVALUATION_BATCH, count))]["x"]
            .numpy()
            .sum(0, dtype=np.float64)
            for start in range(0, count, _EVALUATION_BATCH)
        )
        return torch.from_numpy(total / (255.0 * count)).to(torch.float32)

    def train_dataloader(self) -> StepLoader:
        """Serve ``steps_per_epoch`` full batches of the chosen fraction, shuffled pass by pass."""
        return self._training_loader(self._dataset("train"), self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        """Serve the validation states.

        Returns:
            Every state once, in the order of recording.
        """
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Serve the test states.

        Returns:
            Every state once, in the order of recording.
        """
        return self._evaluation_loader("test")

    def _dataset(self, name: str) -> RecordedStates:
        if name not in self._data:
            raise RuntimeError("the states are known after setup(): call it first")
        return self._data[name]

    def _process(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _sampler(self, num_items: int, steps: int | None) -> StepSampler:
        rank, world_size = self._process()
        return StepSampler(
            num_items,
            batch_size=self.batch_size,
            steps=steps,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def _training_loader(self, dataset: RecordedStates, steps: int | None) -> StepLoader:
        trainer: Any = self.trainer
        return StepLoader(
            dataset,
            self._sampler(len(dataset), steps),
            None
            if trainer is None
            else lambda: trainer.fit_loop.epoch_loop.batch_progress.current.processed,
        )

    def _evaluation_loader(self, name: str) -> DataLoader[Any]:
        dataset = self._dataset(name)
        rank, world_size = self._process()
        sampler = EvenSampler(
            len(dataset), batch_size=_EVALUATION_BATCH, rank=rank, world_size=world_size
        )
        return DataLoader(dataset, batch_size=None, sampler=sampler)
