"""A teacher's recorded play as batches of stacks and log-probabilities."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from lightning_sobolev.atari.agents.cards import Agent, load_agent
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recorder import record
from lightning_sobolev.atari.recording import Recording, identity_of
from lightning_sobolev.atari.rounds import Rounds, Visits
from lightning_sobolev.atari.sampling import StepLoader
from lightning_sobolev.atari.serving import StatesDataModule
from lightning_sobolev.atari.splits import SplitSizes, choose_fraction, split_by_episode
from lightning_sobolev.atari.states import STRIDE, RecordedStates, indices_of


class RecordingDataModule(StatesDataModule):
    """Records a teacher's play where it is missing, and serves it.

    Training, validation and test states come from different episodes.

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
        steps_per_epoch: Batches per epoch; None takes one pass over the chosen states. With
            several rounds an epoch is a round.
        seed: Seed of the chosen fraction and of the order.
        recording_seed: Seed of the games and of all draws while recording.
        behavior: How actions are chosen; None draws from the policy's own probabilities.
        rounds: Rounds in all; in each but the first the student plays before it is trained on, see
            :class:`Rounds`. Validation and test states stay those of the teacher's play.
        round_states: States that the student visits in a round, of which ``fraction`` is used; None
            takes ``num_states``.
        beta: Share of the decisions in round r that the teacher takes is ``beta**r``.
        student: Name of the trained submodule.
        device: Where the networks work while recording.
        remake: Whether to record anew whatever is there.
        progress: Whether to show a progress bar while recording (on a terminal).

    Raises:
        ValueError: If a number is out of range, there are fewer states than a batch, or the
            behavior asks for another player.
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
        behavior: Behavior | None = None,
        rounds: int = 1,
        round_states: int | None = None,
        beta: float = 0.0,
        student: str = "net",
        device: torch.device | str = "cpu",
        remake: bool = False,
        progress: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, steps_per_epoch=steps_per_epoch, seed=seed)
        self.folder = Path(root) / settings.game
        self.settings = settings
        self.teacher = teacher if isinstance(teacher, nn.Module) else load_agent(teacher)[0]
        self.sizes = SplitSizes(
            train=num_states, validation=num_validation_states, test=num_test_states
        )
        self.fraction = fraction
        self.recording_seed = recording_seed
        self.behavior = behavior or Behavior()
        self.behavior.check_player(None)
        visited = num_states if round_states is None else round_states
        policy = Rounds(number=rounds, num_states=visited, beta=beta, student=student)
        self.visits = Visits(Path(root) / f"{settings.game}_rounds", policy)
        self._device = device
        self._remake = remake
        self._progress = progress
        self._verified = False
        self._reloads: int | None = None
        # what is wrong with the numbers is said before a minute goes into recording
        self._sampler(len(self._choose(np.arange(num_states), num_states)), steps_per_epoch)
        self._choose(np.arange(visited), visited, 1)

    @property
    def recording(self) -> Recording:
        """The opened recording; there after :meth:`setup`."""
        return self._dataset("train").recordings[0]

    @property
    def grows(self) -> bool:
        """Whether epochs differ in what they are trained on."""
        return self.visits.rounds.number > 1

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
            behavior=self.behavior,
            seed=self.recording_seed,
            device=self._device,
            remake=self._remake,
            progress=self._progress,
        )
        self._remake = False
        self._verified = True

    def setup(self, stage: str | None = None) -> None:
        """Open the recording and split it by episode.

        Args:
            stage: The split is the same in every stage; ``"fit"`` may be several rounds.

        Raises:
            ValueError: If the recording is another one or too short; ``prepare_data`` mends it.
        """
        recording = Recording(self.folder, verify=not self._verified)
        self._verified = True
        identity = identity_of(
            self.settings, self.teacher, seed=self.recording_seed, behavior=self.behavior
        )
        split = split_by_episode(
            recording.episodes, self.sizes, num_envs=recording.settings.num_envs
        )
        if recording.identity != identity or isinstance(split, int):
            raise ValueError(
                f"{self.folder} must be this teacher's recording, long enough for {self.sizes}, "
                f"got {recording.num_states} states and {recording.identity}: call prepare_data()"
            )
        rows = {
            "train": self._choose(split.train, self.sizes.train),
            "validation": split.validation,
            "test": split.test,
        }
        self._data = {name: RecordedStates([recording], index) for name, index in rows.items()}
        if stage == "fit" and self.grows:
            self._reload_every_epoch(self.trainer)

    def _reload_every_epoch(self, trainer: Any) -> None:
        # the trainer asks for the data of every epoch anew: they grow in between
        if trainer is not None and self._reloads is None:
            self._reloads = trainer.reload_dataloaders_every_n_epochs
            trainer.reload_dataloaders_every_n_epochs = 1

    def teardown(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Leave the trainer as it was.

        Args:
            stage: Not used.
        """
        trainer: Any = self.trainer
        if trainer is not None and self._reloads is not None:
            trainer.reload_dataloaders_every_n_epochs = self._reloads
            self._reloads = None

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        """Leave the trainer as it was, also when training breaks off.

        Args:
            exception: Not used.
        """
        self.teardown()

    def train_dataloader(self) -> StepLoader:
        """Serve full batches of the chosen fraction, with what the student has visited.

        Returns:
            ``steps_per_epoch`` batches, or those of a round.
        """
        rounds, trainer = self.visits.rounds, self.trainer
        if not self.grows or trainer is None:
            return super().train_dataloader()
        visited = self.visits.catch_up(trainer, self._play)
        own = self._dataset("train").index
        parts = [own[own < STRIDE]]
        for part in range(1, 1 + len(visited)):
            rows = self._choose(np.arange(rounds.num_states), rounds.num_states, part)
            parts.append(indices_of(part, rows))
        grown = RecordedStates([self.recording, *visited], np.concatenate(parts))
        self._data["train"] = grown
        return self._training_loader(grown, rounds.steps(trainer))

    def _play(self, number: int, student: nn.Module) -> Recording:
        rounds, trainer = self.visits.rounds, self.trainer
        behavior = rounds.behavior(number, self.behavior)
        seed = self.recording_seed + number  # other games than those of the test states
        identity = identity_of(
            self.settings, self.teacher, seed=seed, behavior=behavior, player=student
        )
        has_bar = trainer is not None and trainer.progress_bar_callback is not None
        return record(
            self.visits.place_of(identity),
            self.settings,
            self.teacher,
            num_states=rounds.num_states,
            behavior=behavior,
            player=student,
            seed=seed,
            device=self._device,
            progress=self._progress and not has_bar,
        )

    def state_dict(self) -> dict[str, Any]:
        """Say what the student has visited.

        Returns:
            What a checkpoint stores; empty where there is one round.
        """
        return self.visits.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Open what the student had visited.

        Args:
            state_dict: What :meth:`state_dict` said.
        """
        self.visits.load_state_dict(state_dict)

    def _choose(
        self, train: Int[np.ndarray, " train"], num_states: int, part: int = 0
    ) -> Int[np.ndarray, " chosen"]:
        seed = self.seed if part == 0 else (self.seed, part)
        return choose_fraction(train, num_states=num_states, fraction=self.fraction, seed=seed)
