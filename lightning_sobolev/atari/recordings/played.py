"""A teacher's play as batches: recorded where it is missing."""

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_sobolev.atari.agents.cards import Agent
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recordings.datamodule import StatesDataModule, network_of
from lightning_sobolev.atari.recordings.dataset import Recorded, Split, SplitSizes, split_by_episode
from lightning_sobolev.atari.recordings.format import Recording
from lightning_sobolev.atari.recordings.record import identity_of, record


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOptions:
    """How a missing recording is made.

    Args:
        behavior: How actions are chosen; the default draws from the policy's own probabilities.
        seed: Seed of the games and of all draws.
        device: Where the networks work.
        remake: Whether to record anew whatever is there.
        progress: Whether to show a progress bar (on a terminal).
    """

    behavior: Behavior = field(default_factory=Behavior)
    seed: int = 0
    device: torch.device | str = "cpu"
    remake: bool = False
    progress: bool = True


class PlayedDataModule(StatesDataModule):
    """Records a teacher's play where it is missing, and serves it; a subclass says how.

    Training, validation and test states come from different episodes.

    Args:
        folder: The recording.
        teacher: Who plays.
        sizes: How many states of each kind.
        recording: How a missing recording is made.
        check: Called with the teacher before anything is recorded; may refuse it.
        **serving: ``fraction``, ``batch_size`` ... of :class:`StatesDataModule`.
    """

    def __init__(
        self,
        folder: Path,
        teacher: nn.Module,
        *,
        sizes: SplitSizes | None = None,
        recording: RecordingOptions | None = None,
        check: Callable[[nn.Module], object] | None = None,
        **serving: Any,
    ) -> None:
        super().__init__(sizes or SplitSizes(), **serving)
        if self.sizes.train is None:
            raise ValueError("train must be a number where it is recorded for, got None")
        self.folder, self.teacher = folder, teacher
        self.options = recording or RecordingOptions()
        self.options.behavior.check_player(None)
        self._check, self._is_made = check, False

    @abstractmethod
    def record(self, folder: Path, **how: Any) -> Recorded:
        """Record what is missing below a folder; ``how`` is that of :func:`record`."""

    @abstractmethod
    def identity(self, **who: Any) -> dict[str, Any]:
        """Return what decides every byte of a recording but its length."""

    @abstractmethod
    def reopen(self, folder: Path, *, verify: bool = True) -> Recorded:
        """Open a recording that is there."""

    def prepare_data(self) -> None:
        """Check the teacher and record what is missing; once per machine."""
        if self._is_made:
            return
        if self._check is not None:
            self._check(self.teacher)
        how = {one.name: getattr(self.options, one.name) for one in fields(self.options)}
        self.record(self.folder, num_states=self.sizes, **how)
        self._is_made = True

    def open(self) -> tuple[Sequence[Recorded], Sequence[Split]]:
        """Open the recording, split; refuse one that :meth:`prepare_data` would make anew."""
        recording: Any = self.reopen(self.folder, verify=not self._is_made)
        options = self.options
        identity = self.identity(seed=options.seed, behavior=options.behavior)
        split = split_by_episode(recording.episode_lengths, self.sizes)
        if recording.identity != identity or split is None:
            raise ValueError(
                f"{self.folder} must be this teacher's recording, long enough for {self.sizes}, "
                f"got {recording.num_states} states and {recording.identity}: call prepare_data()"
            )
        return [recording], [split]

    def record_round(
        self, number: int, player: nn.Module, *, beta: float, num_states: int, has_bar: bool
    ) -> Recorded:
        """Record what a player visits in a round; the teacher decides with probability ``beta``."""
        how: dict[str, Any] = {
            "behavior": replace(self.options.behavior, beta=beta),
            "seed": self.options.seed + number,  # other games than those of the test states
            "player": player,
        }
        identity = json.dumps(self.identity(**how), sort_keys=True)
        how |= {"device": self.options.device, "progress": self.options.progress and not has_bar}
        folder = self.rounds_folder / sha256(identity.encode()).hexdigest()[:16]
        return self.record(folder, num_states=num_states, **how)

    @property
    def rounds_folder(self) -> Path:
        """Folder of what players visited."""
        return Path(f"{self.folder}_dagger")


class RecordingDataModule(PlayedDataModule):
    """Records a teacher's play of a game where it is missing, and serves it.

    Training, validation and test states come from different episodes.

    Args:
        root: Folder of all recordings; this one is in a folder named after the game.
        settings: What is played.
        teacher: Who plays: what :func:`load_agent` takes, or a network from 0..1 to logits.
        **how: ``sizes``, ``recording``, ``check``, ``fraction`` ... of :class:`PlayedDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        settings: AtariSettings,
        teacher: Agent | nn.Module,
        **how: Any,
    ) -> None:
        super().__init__(Path(root) / settings.game, network_of(teacher), **how)
        self.settings = settings

    def record(self, folder: Path, **how: Any) -> Recording:
        """Record what is missing below a folder; ``how`` is that of :func:`record`."""
        return record(folder, self.settings, self.teacher, **how)

    def identity(self, **who: Any) -> dict[str, Any]:
        """Return what decides every byte of a recording but its length."""
        return identity_of(self.settings, self.teacher, **who)

    def reopen(self, folder: Path, *, verify: bool = True) -> Recording:
        """Open a recording that is there."""
        return Recording(folder, verify=verify)
