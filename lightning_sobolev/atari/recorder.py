"""Make a recording, or go on with one that was interrupted or is too short."""

import copy
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev._files import read_json, write_json
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.environments import AtariSettings, Environments
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.recording import Recording, identity_of
from lightning_sobolev.atari.replacing import HEADER, discard_others, forget
from lightning_sobolev.atari.rollout import Rollout
from lightning_sobolev.atari.storage import Chunk, beside, lock, read_chunks, recover, write_chunk
from lightning_sobolev.atari.writing import write_recording

Wanted = int | Callable[[Int[np.ndarray, " states"]], int]
"""A number of states, or a function that finds it from the episode numbers recorded so far."""

_REPLAYED_STEPS = 256


def record(
    folder: str | Path,
    settings: AtariSettings,
    teacher: nn.Module,
    *,
    num_states: Wanted,
    behavior: Behavior | None = None,
    player: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    chunk_steps: int = 256,
    remake: bool = False,
    progress: bool = True,
) -> Recording:
    """Let a teacher, or another player, play; store what was seen and what the teacher answers.

    A recording that is already there and long enough is opened. One that was interrupted, or is
    too short, is continued: the stored actions are replayed (fast, and every picture is compared),
    so the result is the same as if it had been made in one go. One that was made with other
    settings or by other players is replaced, with a message. A finished recording appears whole
    or not at all. Processes that want the same recording wait for each other. Pictures go to the
    disk every ``chunk_steps`` steps, so memory does not grow with the recording.

    Args:
        folder: Where the recording is or shall be.
        settings: What is played.
        teacher: Maps scaled stacks to logits; it is copied.
        num_states: How many states at least; whole steps of all games are recorded.
        behavior: Who acts, and how; None draws actions from the teacher's own probabilities.
        player: Who takes the decisions that ``behavior.beta`` does not give to the
            teacher; a network like the teacher, e.g. a student. It is copied.
        seed: Seed of the games and of all draws.
        device: Where the networks work.
        chunk_steps: Steps after which the work is saved.
        remake: Whether to forget what is there.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The recording, checked.

    Raises:
        ValueError: If the recording is damaged, the folder holds other files or an imported
            recording, or the outputs of a network are not the game's actions.
    """
    folder, behavior = Path(folder), behavior or Behavior()
    identity = identity_of(settings, teacher, seed=seed, behavior=behavior, player=player)
    with lock(folder):
        recover(folder)
        if remake:
            forget(folder)
        discard_others(folder, identity)
        done = Recording.open_as(folder, identity)
        episodes = np.zeros(0, np.int64) if done is None else done.episodes
        target = num_states(episodes) if callable(num_states) else num_states
        if target < 1:
            raise ValueError(f"num_states must be at least 1, got {target}")
        if done is not None and len(episodes) >= target:
            return done
        players = _Players(behavior, _copy(teacher, device), player and _copy(player, device))
        recorder = _Recorder(folder, identity, settings, players, device=device)
        with progress_bar(f"recording {settings.game}", target, enabled=progress) as advance:
            recorder.restore(done, advance)
            recorder.extend(num_states, chunk_steps, advance)
        recorder.finish()
        return Recording(folder)


class _Players(NamedTuple):
    behavior: Behavior
    teacher: nn.Module
    player: nn.Module | None


def _copy(network: nn.Module, device: torch.device | str) -> nn.Module:
    return copy.deepcopy(network).to(device).eval()


class _Recorder:
    """The steps recorded so far: pictures on the disk, the states' numbers in memory."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        settings: AtariSettings,
        players: _Players,
        *,
        device: torch.device | str,
    ) -> None:
        self._folder = folder
        self._partial = beside(folder, "partial")
        self._identity = identity
        self._settings = settings
        self._players = players
        self._device = device
        self._done: Recording | None = None
        self._states: list[np.ndarray] = []
        self._rollout = self._start()

    def _start(self) -> Rollout:
        seed = self._identity["seed"]
        environments = Environments(self._settings, seed)
        return Rollout(environments, seed=seed, behavior=self._players.behavior)

    @property
    def _num_states(self) -> int:
        return sum(states.size for states in self._states)

    def _chunks(self) -> Iterator[Chunk]:
        """Read what is stored: the finished recording first, then what came after it."""
        first_step = 0
        if self._done is not None:
            for chunk in _as_chunks(self._done):
                first_step += len(chunk)
                yield chunk
        yield from read_chunks(self._partial, first_step)

    def restore(self, done: Recording | None, advance: Advance) -> None:
        """Replay what is stored; forget what cannot be replayed."""
        self._done = done
        first_step = 0 if done is None else done.num_states // self._settings.num_envs
        header = {"identity": self._identity, "first_step": first_step}
        if self._partial.exists() and read_json(self._partial / HEADER) != header:
            shutil.rmtree(self._partial)
        for chunk in self._chunks():
            if not self._rollout.replay(chunk, advance):
                self._restart(header)
                break
            self._states.append(chunk.states)
        if self._states:
            rank_zero_info(f"Recording {self._folder}: going on after {self._num_states} states.")
        self._partial.mkdir(parents=True, exist_ok=True)
        write_json(self._partial / HEADER, header)

    def _restart(self, header: dict[str, Any]) -> None:
        rank_zero_info(
            f"Recording {self._folder}: the game does not replay as it was stored (another "
            "version of ale_py?), recording anew."
        )
        shutil.rmtree(self._partial, ignore_errors=True)
        self._done, self._states, header["first_step"] = None, [], 0
        self._rollout = self._start()

    def extend(self, wanted: Wanted, chunk_steps: int, advance: Advance) -> None:
        """Record until there are enough states."""
        while (missing := self._missing_steps(wanted)) > 0:
            first_step = self._rollout.step
            chunk = self._rollout.record(
                self._players.teacher,
                min(missing, chunk_steps),
                advance,
                player=self._players.player,
                device=self._device,
            )
            write_chunk(self._partial, first_step, chunk)
            self._states.append(chunk.states)

    def _missing_steps(self, wanted: Wanted) -> int:
        episodes = [states["episode"].reshape(-1) for states in self._states]
        known = np.concatenate([np.zeros(0, np.int64), *episodes])
        target = wanted(known) if callable(wanted) else wanted
        return -(-(target - len(known)) // self._settings.num_envs)

    def finish(self) -> None:
        """Write the finished recording and drop the unfinished one."""
        # what lies behind the chunks of this recording is left over from another chunk_steps
        chunks = islice(self._chunks(), len(self._states))
        write_recording(
            self._folder, chunks, self._num_states, self._settings, identity=self._identity
        )
        shutil.rmtree(self._partial)


def _as_chunks(recording: Recording) -> Iterator[Chunk]:
    num_envs = recording.settings.num_envs
    for first in range(0, recording.num_states, _REPLAYED_STEPS * num_envs):
        rows = slice(first, min(first + _REPLAYED_STEPS * num_envs, recording.num_states))
        states = recording.states[rows].reshape(-1, num_envs)
        size = recording.frames.shape[1:]
        frames = recording.frames[1 + rows.start : 1 + rows.stop]
        log_probs = recording.log_probs[rows].reshape(*states.shape, -1)
        yield Chunk(frames.reshape(*states.shape, *size), log_probs, states)
