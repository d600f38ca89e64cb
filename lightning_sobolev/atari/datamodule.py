"""A teacher's recorded play as batches of stacks and log-probabilities."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.recorder import record
from lightning_sobolev.atari.recording import Recording, identity_of
from lightning_sobolev.atari.sampling import EvenSampler, StepLoader, StepSampler
from lightning_sobolev.atari.splits import SplitSizes, choose_fraction, split_by_episode
from lightning_sobolev.atari.zoo import Agent, load_agent

_EVALUATION_BATCH = 256
_MEAN_STATES = 2_000  # the standard error of a pixel in 0..1 is then at most 0.011


class RecordedStates(Dataset[dict[str, Tensor]]):
    """Some states of a recording; a whole batch costs one indexing of the mapped pictures.

    Args:
        recording: Where the states are.
        rows: Their numbers in the recording.
    """

    def __init__(self, recording: Recording, rows: Int[np.ndarray, " states"]) -> None:
        self.recording = recording
        self.rows = rows

    def __len__(self) -> int:
        """Number of states."""
        return len(self.rows)

    def __getitem__(self, positions: Int[np.ndarray, " batch"]) -> dict[str, Tensor]:
        """Look up a batch.

        Args:
            positions: Which of the states.

        Returns:
            ``x``: stacks as bytes; ``log_probs``: the teacher's answer; ``index``: the states'
            numbers in the recording, which stay the same whatever the fraction.
        """
        rows = self.rows[positions]
        return {
            "x": torch.from_numpy(self.recording.stacks(rows)),
            "log_probs": torch.from_numpy(self.recording.teacher_log_probs(rows)),
            "index": torch.from_numpy(rows),
        }


class RecordingDataModule(pl.LightningDataModule):
    """Records a teacher's play where it is missing, and serves it.

    Training, validation and test states come from different episodes. Every epoch is
    ``steps_per_epoch`` full batches, so that runs on different fractions are compared at equal
    numbers of steps. Under several processes every one takes batches of its own, the same split
    whatever the trainer's sampler setting.

    Args:
        root: Folder of all recordings; this one is in a folder named after the game.
        settings: What is played.
        teacher: Who plays: what :func:`load_agent` takes, or a network from 0..1 to logits.
        num_states: Training states that fraction 1 takes.
        num_test_states: Test states.
        num_validation_states: Validation states.
        fraction: Part of the training states to use; drawn by ``seed``, smaller ones are parts of
            larger ones.
        batch_size: Training states in the batch of one process.
        steps_per_epoch: Batches per epoch; None takes one pass over the chosen states.
        seed: Seed of the chosen fraction and of the order.
        recording_seed: Seed of the games and of the teacher's drawn actions.
        greedy: Whether the teacher plays its likeliest action instead of a drawn one.
        device: Where the teacher works while recording.
        remake: Whether to record anew whatever is there.
        progress: Whether to show a progress bar while recording (on a terminal).

    Raises:
        ValueError: If a number is out of range, or there are fewer states than a batch.
    """

    def __init__(
        self,
        root: str | Path,
        settings: AtariSettings,
        teacher: Agent | nn.Module,
        *,
        num_states: int = 40_000,
        num_test_states: int = 4_000,
        num_validation_states: int = 1_000,
        fraction: float = 1.0,
        batch_size: int = 32,
        steps_per_epoch: int | None = 500,
        seed: int = 0,
        recording_seed: int = 0,
        greedy: bool = False,
        device: torch.device | str = "cpu",
        remake: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.folder = Path(root) / settings.game
        self.settings = settings
        self.teacher = teacher if isinstance(teacher, nn.Module) else load_agent(teacher)[0]
        self.sizes = SplitSizes(
            train=num_states, validation=num_validation_states, test=num_test_states
        )
        self.fraction = fraction
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self._recorded = {"seed": recording_seed, "greedy": greedy}
        self._device = device
        self._remake = remake
        self._progress = progress
        self._verified = False
        self._data: dict[str, RecordedStates] = {}
        # what is wrong with the numbers is said before a minute goes into recording
        chosen = choose_fraction(
            np.arange(num_states), num_states=num_states, fraction=fraction, seed=seed
        )
        self._sampler(len(chosen))

    @property
    def recording(self) -> Recording:
        """The opened recording; there after :meth:`setup`."""
        return self._dataset("train").recording

    def prepare_data(self) -> None:
        """Record what is missing; once per machine."""

        def wanted(episodes: Int[np.ndarray, " states"]) -> int:
            split = split_by_episode(episodes, self.sizes, num_envs=self.settings.num_envs)
            return split if isinstance(split, int) else len(episodes)

        record(
            self.folder,
            self.settings,
            self.teacher,
            num_states=wanted,
            seed=self._recorded["seed"],
            greedy=bool(self._recorded["greedy"]),
            device=self._device,
            remake=self._remake,
            progress=self._progress,
        )
        self._remake = False
        self._verified = True

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Open the recording and split it by episode.

        Args:
            stage: Not used: the split is the same in every stage.

        Raises:
            ValueError: If the recording is another one or too short; ``prepare_data`` mends it.
        """
        recording = Recording(self.folder, verify=not self._verified)
        self._verified = True
        identity = identity_of(
            self.settings,
            self.teacher,
            seed=self._recorded["seed"],
            greedy=bool(self._recorded["greedy"]),
        )
        split = split_by_episode(
            recording.episodes, self.sizes, num_envs=recording.settings.num_envs
        )
        if recording.identity != identity or isinstance(split, int):
            raise ValueError(
                f"{self.folder} must be this teacher's recording, long enough for {self.sizes}, "
                f"got {recording.num_states} states and {recording.identity}: call prepare_data()"
            )
        chosen = choose_fraction(
            split.train, num_states=self.sizes.train, fraction=self.fraction, seed=self.seed
        )
        rows = {"train": chosen, "validation": split.validation, "test": split.test}
        self._data = {name: RecordedStates(recording, numbers) for name, numbers in rows.items()}

    def mean_state(self) -> Float[Tensor, "stack height width"]:
        """Average the chosen training states, or the first 2,000 of them.

        Returns:
            The mean picture of each place in the stack, pixels in 0..1.
        """
        dataset = self._dataset("train")
        rows = dataset.rows[:_MEAN_STATES]
        total = sum(
            dataset.recording.stacks(rows[start : start + _EVALUATION_BATCH]).sum(
                0, dtype=np.float64
            )
            for start in range(0, len(rows), _EVALUATION_BATCH)
        )
        return torch.from_numpy(total / (255.0 * len(rows))).to(torch.float32)

    def train_dataloader(self) -> StepLoader:
        """Serve ``steps_per_epoch`` full batches of the chosen fraction, shuffled pass by pass."""
        dataset = self._dataset("train")
        return StepLoader(dataset, self._sampler(len(dataset)))

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

    def _sampler(self, num_items: int) -> StepSampler:
        rank, world_size = self._process()
        return StepSampler(
            num_items,
            batch_size=self.batch_size,
            steps=self.steps_per_epoch,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )

    def _evaluation_loader(self, name: str) -> DataLoader[Any]:
        dataset = self._dataset(name)
        rank, world_size = self._process()
        sampler = EvenSampler(
            len(dataset), batch_size=_EVALUATION_BATCH, rank=rank, world_size=world_size
        )
        return DataLoader(dataset, batch_size=None, sampler=sampler)
