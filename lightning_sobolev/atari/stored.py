"""Recordings that are there already, whoever made them, as batches of stacks and answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from lightning_sobolev.atari.agents.cards import Agent, load_agent
from lightning_sobolev.atari.recording import Recording, fingerprint
from lightning_sobolev.atari.serving import StatesDataModule
from lightning_sobolev.atari.splits import choose_fraction, split_all
from lightning_sobolev.atari.states import RecordedStates, indices_of


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
        num_states: Training states that fraction 1 takes; None takes all that are left.
        num_test_states: Test states of all recordings together.
        num_validation_states: Validation states of all recordings together.
        fraction: Part of the training states to use; drawn by ``seed``, smaller ones are parts of
            larger ones.
        batch_size: Training states in the batch of one process.
        steps_per_epoch: Batches per epoch; None takes one pass over the chosen states.
        seed: Seed of the chosen fraction and of the order.

    Raises:
        ValueError: If a number is out of range or no recording is named.
    """

    def __init__(
        self,
        root: str | Path,
        folders: Sequence[str | Path],
        teacher: Agent | nn.Module | None,
        *,
        num_states: int | None = None,
        num_test_states: int = 4_000,
        num_validation_states: int = 1_000,
        fraction: float = 1.0,
        batch_size: int = 32,
        steps_per_epoch: int | None = 500,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed)
        if isinstance(folders, str) or not folders or len(set(folders)) < len(folders):
            raise ValueError(
                f"folders must be a list of at least one recording, each once, got {folders!r}"
            )
        for name, count in (("test", num_test_states), ("validation", num_validation_states)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1 state, got {count}")
        self.folders = [Path(root) / folder for folder in folders]
        self.teacher: nn.Module | None = (
            teacher if teacher is None or isinstance(teacher, nn.Module) else load_agent(teacher)[0]
        )
        self.num_states = num_states
        self.num_test_states = num_test_states
        self.num_validation_states = num_validation_states
        self.fraction = fraction
        self._recordings: list[Recording] = []

    @property
    def recordings(self) -> tuple[Recording, ...]:
        """The opened recordings; there after :meth:`setup`."""
        return self._dataset("train").recordings

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Open the recordings, compare them with the teacher, split them.

        Args:
            stage: Not used: the split is the same in every stage.

        Raises:
            FileNotFoundError: If a recording is missing.
            ValueError: If one is damaged or too short, was answered by another teacher, or they do
                not go together.
        """
        if not self._recordings:
            self._recordings = [Recording(folder) for folder in self.folders]
            self._check_teacher()
        splits = split_all(
            {str(recording.folder): recording.episodes for recording in self._recordings},
            num_test=self.num_test_states,
            num_validation=self.num_validation_states,
        )
        index = {
            name: np.concatenate(
                [indices_of(part, getattr(split, name)) for part, split in enumerate(splits)]
            )
            for name in ("train", "validation", "test")
        }
        index["train"] = self._choose(index["train"])
        self._data = {name: RecordedStates(self._recordings, each) for name, each in index.items()}

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        ours = fingerprint(self.teacher)
        for recording in self._recordings:
            theirs = recording.identity.get("teacher_sha256")
            if theirs != ours:
                raise ValueError(
                    f"teacher must be the one that answered in {recording.folder}, "
                    f"sha256 {theirs}, got {ours}"
                )

    def _choose(self, train: np.ndarray) -> np.ndarray:
        count = len(train) if self.num_states is None else self.num_states
        if not 1 <= count <= len(train):
            raise ValueError(
                f"num_states must be in 1..{len(train)}, what is left beside test and validation, "
                f"got {count}"
            )
        return choose_fraction(train, num_states=count, fraction=self.fraction, seed=self.seed)
