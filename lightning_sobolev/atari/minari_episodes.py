"""Episodes of a Minari data set, laid one after another, with the answers of a teacher.

They are stored as if one game had been played alone. Stacks begin with black pictures whatever the
data set began with, and these stacks are what the teacher answers.
"""

import copy
import hashlib
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from lightning_sobolev._progress import Advance
from lightning_sobolev.atari.conversion import to_pictures
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.policy import log_probabilities
from lightning_sobolev.atari.recording import fingerprint
from lightning_sobolev.atari.storage import (
    CONTINUES,
    FORMAT_VERSION,
    STATE,
    TERMINATED,
    TRUNCATED,
)
from lightning_sobolev.atari.writing import RecordingWriter

_ASKED_AT_ONCE = 256


class Answers:
    """Where a teacher's answers come from.

    Args:
        teacher: Who is asked; it is copied.
        stored: Fingerprint of the teacher whose answers the data set holds; None for no answers.
            They are taken where they are.
        device: Where the teacher works.
    """

    def __init__(
        self, teacher: nn.Module | None, stored: str | None, device: torch.device | str
    ) -> None:
        self._teacher: nn.Module | None = None
        self._device = device
        if stored is not None:
            self.fingerprint = stored
        elif teacher is not None:
            self.fingerprint = fingerprint(teacher)
            self._teacher = copy.deepcopy(teacher).to(device).eval()
        else:
            raise ValueError("teacher must be given where a data set holds no answers, got None")

    def of(
        self, episode: Any, pictures: UInt8[np.ndarray, "step height width"], stack_num: int
    ) -> Float[np.ndarray, "step actions"]:
        """Look up the answers to an episode, or ask.

        Args:
            episode: The episode.
            pictures: What it showed.
            stack_num: Pictures in a stack.

        Returns:
            Log-probabilities.
        """
        if self._teacher is None:
            stored: np.ndarray = episode.infos["teacher_log_probs"][: len(pictures)]
            return stored
        black = np.zeros_like(pictures, shape=(stack_num - 1, *pictures.shape[1:]))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.concatenate([black, pictures]), stack_num, axis=0
        )
        stacks = np.moveaxis(windows, -1, 1)
        return np.concatenate(
            [
                log_probabilities(
                    self._teacher,
                    np.ascontiguousarray(stacks[first : first + _ASKED_AT_ONCE]),
                    device=self._device,
                )
                for first in range(0, len(stacks), _ASKED_AT_ONCE)
            ]
        )


class Episodes:
    """Makes a recording of a data set's episodes.

    Args:
        dataset: A ``minari.MinariDataset``.
        settings: What the pictures are meant to be; None finds the game in the data set.
        answers: Where the teacher's answers come from.
    """

    def __init__(self, dataset: Any, settings: AtariSettings | None, answers: Answers) -> None:
        self._dataset = dataset
        self._answers = answers
        self._settings = replace(settings or AtariSettings(_game_of(dataset)), num_envs=1)
        if dataset.total_steps == 0:
            raise ValueError(f"dataset must have at least one step, got none in {dataset.id}")

    def identity(self) -> dict[str, Any]:
        """Say what the recording is.

        Returns:
            A JSON object; its entry ``imported`` says which episodes of which data set.
        """
        chosen = np.asarray(self._dataset.episode_indices, "<i8").tobytes()
        return {
            "format": FORMAT_VERSION,
            "settings": asdict(self._settings),
            "teacher_sha256": self._answers.fingerprint,
            "imported": {
                "dataset": self._dataset.id,
                "num_states": self._dataset.total_steps,
                "episodes_sha256": hashlib.sha256(chosen).hexdigest(),
            },
        }

    def write(self, folder: Path, advance: Advance) -> None:
        """Go through the episodes and write the recording.

        Args:
            folder: Where it shall be.
            advance: Told how many states are done.

        Raises:
            ValueError: If an episode does not fit the settings or the teacher.
        """
        settings, first = self._settings, 0
        total = self._dataset.total_steps
        with RecordingWriter(folder, total, settings) as writer:
            for number, episode in enumerate(self._dataset.iterate_episodes()):
                steps = len(episode)
                pictures = to_pictures(_one_array(episode.observations)[:steps], settings)
                log_probs = self._answers.of(episode, pictures, settings.stack_num)
                self._check(episode, log_probs.shape[1])
                ends = np.where(episode.truncations, TRUNCATED, CONTINUES)
                ends = np.where(episode.terminations, TERMINATED, ends)
                rows = np.arange(first, first + steps)
                writer.put(rows, pictures, log_probs, states_of(episode, number, ends))
                first += steps
                advance(steps)
            writer.finish(self.identity())

    def _check(self, episode: Any, num_actions: int) -> None:
        highest = int(np.max(episode.actions))
        if highest >= num_actions:
            raise ValueError(
                f"teacher must have an output for every action of {self._dataset.id}, got "
                f"{num_actions} outputs and action {highest}"
            )


def states_of(episode: Any, number: int, ends: np.ndarray) -> np.ndarray:
    """Describe the steps of an episode as a recording does.

    Args:
        episode: A ``minari.EpisodeData``.
        number: Its number in the recording.
        ends: How each step ended it.

    Returns:
        One entry of ``STATE`` for each step.
    """
    states = np.empty(len(episode), STATE)
    states["episode"], states["age"] = number, np.arange(len(episode))
    states["action"], states["reward"], states["end"] = episode.actions, episode.rewards, ends
    return states


def _one_array(observations: Any) -> np.ndarray:
    if isinstance(observations, dict | tuple):
        raise ValueError(
            f"observations must be pictures, got a {type(observations).__name__} of several things"
        )
    return np.asarray(observations)


def _game_of(dataset: Any) -> str:
    """Find the game in an id like ``ALE/SpaceInvaders-v5`` or ``PongNoFrameskip-v4``."""
    spec = dataset.env_spec
    found = spec and re.fullmatch(r"(?:ALE/)?(\w+?)(?:NoFrameskip|Deterministic)?-v\d+", spec.id)
    if not found:
        raise ValueError(f"settings must be given: {dataset.id} does not say which game it is of")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", found[1]).lower()
