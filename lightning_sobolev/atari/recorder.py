"""Make a recording, or go on with one that was interrupted or is too short."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_sobolev.atari.environments import AtariSettings, make_environments
from lightning_sobolev.atari.progress import Advance, progress_bar
from lightning_sobolev.atari.recording import Recording, identity_of, read_identity
from lightning_sobolev.atari.rollout import Rollout
from lightning_sobolev.atari.storage import (
    ARRAY_FILES,
    INDEX_FILE,
    Chunk,
    beside,
    lock,
    read_chunks,
    read_json,
    recover,
    write_chunk,
    write_json,
    write_recording,
)

Wanted = int | Callable[[Int[np.ndarray, " states"]], int]
"""A number of states, or a function that finds it from the episode numbers recorded so far."""

_HEADER = "header.json"


def record(
    folder: str | Path,
    settings: AtariSettings,
    teacher: nn.Module,
    *,
    num_states: Wanted,
    seed: int = 0,
    greedy: bool = False,
    device: torch.device | str = "cpu",
    chunk_steps: int = 256,
    remake: bool = False,
    progress: bool = True,
) -> Recording:
    """Let a teacher play and store what it saw and answered.

    A recording that is already there and long enough is opened. One that was interrupted, or is
    too short, is continued: the stored actions are replayed (fast, and every picture is compared),
    so the result is the same as if it had been made in one go. One that was made with other
    settings or by another teacher is replaced, with a message. A finished recording appears whole
    or not at all. Processes that want the same recording wait for each other.

    Args:
        folder: Where the recording is or shall be.
        settings: What is played.
        teacher: Maps scaled stacks to logits; it is copied.
        num_states: How many states at least; whole steps of all games are recorded.
        seed: Seed of the games and of the drawn actions.
        greedy: Whether the likeliest action is taken instead of a drawn one.
        device: Where the teacher works.
        chunk_steps: Steps after which the work is saved.
        remake: Whether to forget what is there.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The recording, checked.

    Raises:
        ValueError: If the recording is damaged, the folder holds other files, or the teacher's
            outputs are not the game's actions.
    """
    folder = Path(folder)
    identity = identity_of(settings, teacher, seed=seed, greedy=greedy)
    with lock(folder):
        recover(folder)
        if remake:
            _forget(folder)
        _discard_others(folder, identity)
        done = Recording.open_as(folder, identity)
        episodes = np.zeros(0, np.int64) if done is None else done.episodes
        target = num_states(episodes) if callable(num_states) else num_states
        if target < 1:
            raise ValueError(f"num_states must be at least 1, got {target}")
        if done is not None and len(episodes) >= target:
            return done
        player = copy.deepcopy(teacher).to(device).eval()
        recorder = _Recorder(folder, identity, settings, player, device=device)
        with progress_bar(f"recording {settings.game}", target, enabled=progress) as advance:
            recorder.restore(done, advance)
            recorder.extend(num_states, chunk_steps, advance)
        recorder.finish()
        return Recording(folder)


class _Recorder:
    """The steps recorded so far, in memory and in the folder of the unfinished recording."""

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        settings: AtariSettings,
        teacher: nn.Module,
        *,
        device: torch.device | str,
    ) -> None:
        self._folder = folder
        self._partial = beside(folder, "partial")
        self._identity = identity
        self._settings = settings
        self._teacher = teacher
        self._device = device
        self._chunks: list[Chunk] = []
        self._rollout = self._start()

    def _start(self) -> Rollout:
        seed, greedy = self._identity["seed"], self._identity["greedy"]
        return Rollout(make_environments(self._settings, seed), seed=seed, greedy=greedy)

    def restore(self, done: Recording | None, advance: Advance) -> None:
        """Replay what is stored; forget what cannot be replayed."""
        stored = [] if done is None else [_as_chunk(done)]
        first_step = sum(map(len, stored))
        header = {"identity": self._identity, "first_step": first_step}
        if read_json(self._partial / _HEADER) == header:
            stored += read_chunks(self._partial, first_step)
        elif self._partial.exists():
            shutil.rmtree(self._partial)
        if stored:
            count = sum(chunk.states.size for chunk in stored)
            rank_zero_info(f"Recording {self._folder}: going on after {count} states.")
        for chunk in stored:
            if not self._rollout.replay(chunk, advance):
                rank_zero_info(
                    f"Recording {self._folder}: the game does not replay as it was stored (another "
                    "version of ale_py?), recording anew."
                )
                shutil.rmtree(self._partial, ignore_errors=True)
                header["first_step"], stored = 0, []
                self._rollout = self._start()
                break
        self._chunks = stored
        self._partial.mkdir(parents=True, exist_ok=True)
        write_json(self._partial / _HEADER, header)

    def extend(self, wanted: Wanted, chunk_steps: int, advance: Advance) -> None:
        """Record until there are enough states."""
        while (missing := self._missing_steps(wanted)) > 0:
            first_step = self._rollout.step
            chunk = self._rollout.record(
                self._teacher, min(missing, chunk_steps), advance, device=self._device
            )
            write_chunk(self._partial, first_step, chunk)
            self._chunks.append(chunk)

    def _missing_steps(self, wanted: Wanted) -> int:
        episodes = [chunk.states["episode"].reshape(-1) for chunk in self._chunks]
        known = np.concatenate([np.zeros(0, np.int64), *episodes])
        target = wanted(known) if callable(wanted) else wanted
        return -(-(target - len(known)) // self._settings.num_envs)

    def finish(self) -> None:
        """Write the finished recording and drop the unfinished one."""
        write_recording(self._folder, self._chunks, self._identity)
        shutil.rmtree(self._partial)


def _as_chunk(recording: Recording) -> Chunk:
    num_envs = recording.settings.num_envs
    shape = (recording.num_states // num_envs, num_envs)
    return Chunk(
        recording.frames[1:].reshape(*shape, *recording.frames.shape[1:]),
        recording.log_probs.reshape(*shape, -1),
        recording.states.reshape(shape),
    )


def _discard_others(folder: Path, identity: dict[str, Any]) -> None:
    header = read_json(beside(folder, "partial") / _HEADER) or {}
    found = read_identity(folder) or header.get("identity", identity)
    if found != identity:
        rank_zero_info(
            f"Recording {folder}: made with other settings ({_difference(found, identity)}), "
            "recording anew."
        )
        _forget(folder)


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    def flat(identity: dict[str, Any]) -> dict[str, Any]:
        return {**identity, **identity.get("settings", {}), "settings": None}

    old, new = flat(found), flat(asked)
    return ", ".join(
        f"{key}: {old.get(key)} instead of {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )


def _forget(folder: Path) -> None:
    # a mistyped path must not cost anyone a folder of other things
    here = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := here - {*ARRAY_FILES, INDEX_FILE}:
        raise ValueError(
            f"{folder} must hold nothing but a recording to be replaced, got {sorted(foreign)}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(beside(folder, "partial"), ignore_errors=True)
