"""Recorded states as training, validation and test batches."""

from abc import abstractmethod
from collections.abc import Sequence, Sized
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_sobolev._checks import require
from lightning_sobolev.atari.agents.cards import Agent, load_agent
from lightning_sobolev.atari.recordings import dataset as states
from lightning_sobolev.atari.recordings.dataset import (
    Recorded,
    RecordedStates,
    Split,
    SplitSizes,
)
from lightning_sobolev.atari.recordings.format import Recording, fingerprint
from lightning_sobolev.loading import OrderedBatches, ResumableLoader, ShuffledBatches

_EVALUATION_BATCH = 256
_MEAN_STATES = 2_000  # the standard error of a pixel in 0..1 is then at most 0.011


class _GrowingBatches(ShuffledBatches):
    """Shuffled batches of a data set that may be longer in the next epoch."""

    def __init__(self, rows: Sized, *arguments: Any, **options: Any) -> None:
        super().__init__(len(rows), *arguments, **options)
        self._rows: Sized = rows

    def batch(self, number: int) -> Int[Tensor, " batch"]:
        if self.num_rows != len(self._rows):
            self.num_rows = len(self._rows)
            self._per_pass = self.num_rows // self.batch_size
            self._shuffled = (-1, self._shuffled[1])  # of no pass
        return super().batch(number)


class StatesDataModule(pl.LightningDataModule):
    """Serves the training, validation and test states of recordings that a subclass opens.

    Every epoch is ``steps_per_epoch`` full batches, so that runs on different fractions are
    compared at equal numbers of steps.

    Args:
        sizes: How many states of each kind.
        fraction: Part of the training states to use; drawn by ``seed``, smaller ones are parts of
            larger ones.
        batch_size: Training states in the batch of all processes together.
        steps_per_epoch: Batches per epoch; None takes one pass over the chosen states.
        seed: Seed of the chosen fraction and of the order.
    """

    def __init__(
        self,
        sizes: SplitSizes,
        *,
        fraction: float = 1.0,
        batch_size: int = 32,
        steps_per_epoch: int | None = 500,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, count in (("batch_size", batch_size), ("steps_per_epoch", steps_per_epoch)):
            require(count is None or count >= 1, name, "at least 1", count)
        self.sizes, self.fraction, self.seed = sizes, fraction, seed
        self.batch_size, self.steps_per_epoch = batch_size, steps_per_epoch
        self._data: dict[str, RecordedStates] = {}
        count = sizes.train or 1_000_000
        states.choose_fraction(count, count, fraction, seed)  # a bad one is said at once

    @abstractmethod
    def open(self) -> tuple[Sequence[Recorded], Sequence[Split]]:
        """Open the recordings and split each."""

    def setup(self, stage: str | None = None) -> None:
        """Open the recordings and choose the states; a fit begins with these alone."""
        if self._data and stage not in ("fit", None):
            return
        recordings, splits = self.open()
        self._data = {
            name: RecordedStates(recordings, [getattr(split, name) for split in splits])
            for name in Split._fields
        }
        train = self._data["train"]
        count = self.sizes.train or len(train)
        train.index = train.index[
            states.choose_fraction(len(train), count, self.fraction, self.seed)
        ]

    def extend(self, recording: Recorded, num_states: int) -> None:
        """Train on a recording more from the next epoch on; ``fraction`` is of ``num_states``."""
        train = self._dataset("train")
        seed, found = (self.seed, len(train.recordings)), recording.num_states
        train.add(recording, states.choose_fraction(found, num_states, self.fraction, seed))

    @property
    def num_train_states(self) -> int:
        """Training states that are served; there after :meth:`setup`."""
        return len(self._dataset("train"))

    def states(self, count: int) -> Shaped[Tensor, "batch *in"]:
        """Return chosen training states, at most ``count``, in the random order of the choice."""
        dataset = self._dataset("train")
        found: Tensor = dataset[torch.arange(min(count, len(dataset)))]["x"]
        return found

    @property
    def mean_state(self) -> Float[Tensor, "stack height width"]:
        """Mean of the chosen training states, or of the first 2,000 of them, pixels in 0..1."""
        dataset = self._dataset("train")
        count = min(len(dataset), _MEAN_STATES)
        batches = OrderedBatches(count, _EVALUATION_BATCH)
        total = torch.stack([dataset[rows]["x"].sum(0) for rows in batches]).sum(0)
        return (total.double() / (255 * count)).float()

    def train_dataloader(self) -> ResumableLoader:
        """Serve ``steps_per_epoch`` full batches of the chosen states, shuffled pass by pass."""
        dataset = self._dataset("train")
        how = {"seed": self.seed, **self._process()}
        batches = _GrowingBatches(dataset, self.batch_size, self.steps_per_epoch, **how)
        return ResumableLoader(dataset, batches, self.trainer)

    def val_dataloader(self) -> DataLoader[Any]:
        """Serve every validation state once, in the order of recording."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Serve every test state once, in the order of recording."""
        return self._evaluation_loader("test")

    def _dataset(self, name: str) -> RecordedStates:
        if name not in self._data:
            raise RuntimeError("the states are known after setup(): call it first")
        return self._data[name]

    def _process(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _evaluation_loader(self, name: str) -> DataLoader[Any]:
        dataset = self._dataset(name)
        batches = OrderedBatches(len(dataset), _EVALUATION_BATCH, **self._process())
        return DataLoader(dataset, batch_size=None, sampler=batches)


class StoredDataModule(StatesDataModule):
    """Serves one or several recordings as they are: imported, mixed, made on other machines.

    Every recording is split by its own episodes, in the same proportion, so test states come from
    all of them. Nothing is recorded: a folder that is missing is an error.

    Args:
        root: Folder of all recordings.
        folders: Which of them: names below ``root``, or whole paths. Their order is part of the
            states' indices.
        teacher: Who answered: what :func:`load_agent` takes, or a network from 0..1 to logits. Its
            weights are compared with what the recordings say; None takes their word.
        sizes: How many states of each kind, of all recordings together.
        **serving: ``fraction``, ``batch_size`` ... of :class:`StatesDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        folders: Sequence[str | Path],
        teacher: Agent | nn.Module | None,
        *,
        sizes: SplitSizes | None = None,
        **serving: Any,
    ) -> None:
        super().__init__(sizes or SplitSizes(train=None), **serving)
        are_many = not isinstance(folders, str) and folders and len(set(folders)) == len(folders)
        require(bool(are_many), "folders", "a list of at least one recording, each once", folders)
        self.folders = [Path(root) / folder for folder in folders]
        self.teacher = None if teacher is None else network_of(teacher)

    def open(self) -> tuple[Sequence[Recording], Sequence[Split]]:
        """Open the recordings, compare them with the teacher, split them."""
        recordings = [Recording(folder) for folder in self.folders]
        ours = None if self.teacher is None else fingerprint(self.teacher)
        for one in recordings:
            theirs = one.identity["teacher_sha256"]
            if ours not in (None, theirs):
                who = f"the one that answered in {one.folder}, sha256 {theirs}"
                raise ValueError(f"teacher must be {who}, got {ours}")
        lengths = {str(one.folder): [*chain(*one.episode_lengths)] for one in recordings}
        return recordings, states.split_all(lengths, self.sizes)


def network_of(teacher: Agent | nn.Module) -> nn.Module:
    """Return a network as it is, and that of what :func:`load_agent` takes."""
    return teacher if isinstance(teacher, nn.Module) else load_agent(teacher)[0]
