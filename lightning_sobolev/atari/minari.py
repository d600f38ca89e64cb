"""Recordings as data sets of Minari, the format of Gymnasium's offline data, and back.

In an exported data set every observation is one frame ``[1, height, width]`` or a stack; the axis
of length 1 keeps Minari from compressing frames with losses. What the teacher answered is in the
infos as ``teacher_log_probs``, one entry for each observation. Minari wants one observation behind
the last step of an episode, which a recording does not hold: it is black, with answers NaN.
"""

import copy
import hashlib
import importlib
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from jaxtyping import Float, Shaped, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from lightning_sobolev._files import locked
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.policy import log_probabilities
from lightning_sobolev.atari.recordings import format as stored
from lightning_sobolev.atari.recordings.format import Recording

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, within one level of the emulator's own grey
_SMALLEST_SIDE = 32  # a shorter axis counts frames or colors
_ASKED_AT_ONCE = 256


def _load_minari() -> Any:
    try:
        return [importlib.import_module(name) for name in ("h5py", "PIL", "minari")][-1]
    except ModuleNotFoundError as error:
        text = f"data sets of Minari need minari, h5py and PIL ({error})"
        raise ModuleNotFoundError(f"{text}: install the extra 'minari'") from error


def export_minari(
    recording: Recording, dataset_id: str, *, stacked: bool = False, **about: Any
) -> Path:
    """Write a recording as a local Minari data set, one episode for each of its episodes.

    Args:
        recording: What to write.
        dataset_id: New name with a version, e.g. ``"pong/teacher-v0"``.
        stacked: Whether an observation is the whole stack that the teacher saw. Otherwise it is its
            newest frame, which takes a fourth of the space.
        **about: What ``minari.create_dataset_from_buffers`` takes to describe a data set:
            ``description``, ``author``, ``author_email``, ``code_permalink`` ...

    Returns:
        The folder of the data set. What an exception leaves there is deleted.

    Raises:
        ValueError: If the name has another form or is taken.
    """
    minari = _load_minari()
    if not re.fullmatch(r"([-\w]+/)*[-\w]+-v\d+", dataset_id):
        raise ValueError(f"dataset_id must look like 'pong/teacher-v0', got {dataset_id!r}")
    place = Path(minari.storage.get_dataset_path(dataset_id))
    if place.exists():
        raise ValueError(f"dataset_id must be new, got {dataset_id!r}, which is at {place}")
    settings = recording.settings
    size = (settings.stack_num if stacked else 1, settings.img_height, settings.img_width)
    about = {
        "observation_space": Box(0, 255, size, np.uint8),
        "action_space": Discrete(recording.num_actions),
        "algorithm_name": f"policy {recording.identity['teacher_sha256'][:16]}",
        "description": f"Play of {settings.game} with a teacher's answers.",
        **about,
    }
    try:
        with (
            progress_bar(f"exporting {dataset_id}", recording.num_states) as advance,
            warnings.catch_warnings(action="ignore", category=UserWarning),  # nobody's name is set
        ):
            episodes = _exported(minari, recording, stacked, advance)
            minari.create_dataset_from_buffers(dataset_id, episodes, **about)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place


def _exported(minari: Any, recording: Recording, stacked: bool, advance: Advance) -> Iterator[Any]:
    buffer = minari.data_collector.episode_buffer.EpisodeBuffer
    ends = np.cumsum([*chain(*recording.episode_lengths)])
    for rows in np.split(np.arange(recording.num_states), ends[:-1]):
        states = recording.states[rows]
        frames = recording.stacks(rows) if stacked else recording.frames(rows)[:, None]
        yield buffer(
            observations=_padded(frames, 0),
            actions=states["action"].astype(np.int64),
            rewards=states["reward"],
            terminations=states["end"] == stored.TERMINATED,
            truncations=states["end"] == stored.TRUNCATED,
            infos={"teacher_log_probs": _padded(states["log_probs"], np.nan)},
        )
        advance(len(rows))


def _padded(values: np.ndarray, filling: float) -> np.ndarray:
    return np.concatenate([values, np.full_like(values[:1], filling)])


def import_minari(
    dataset: Any,
    folder: str | Path,
    *,
    teacher: nn.Module,
    settings: AtariSettings,
    device: torch.device | str = "cpu",
    remake: bool = False,
) -> Recording:
    """Make a recording of a local Minari data set; the teacher answers every state.

    Observations are grey frames ``[height, width]`` with or without an axis of length 1, colored
    ones ``[height, width, 3]``, or stacks of grey ones with the oldest first, along the first or
    the last axis. Stacks begin with black frames whatever the data set began with. Nothing is
    downloaded.

    Args:
        dataset: Its name, or a ``minari.MinariDataset``, for instance one with some episodes only.
        folder: Where the recording shall be; one that was imported from the same is opened.
        teacher: Maps scaled stacks to logits; it is copied.
        settings: What the frames are meant to be; ``num_envs`` is ignored. Frames of another size
            are averaged over areas.
        device: Where the teacher works.
        remake: Whether to forget what is in the folder.

    Returns:
        The recording, checked.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If it does not fit, or the folder holds something else.
    """
    minari, folder = _load_minari(), Path(folder)
    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except FileNotFoundError as error:
            remedy = f"'minari download {dataset}' fetches it"
            raise FileNotFoundError(f"dataset must be here, got {dataset!r}: {remedy}") from error
    settings = replace(settings, num_envs=1)
    episodes = hashlib.sha256(np.asarray(dataset.episode_indices, "<i8").tobytes()).hexdigest()
    imported = {"dataset": dataset.id, "num_states": int(dataset.total_steps)}
    identity = {
        "settings": asdict(settings),
        "teacher_sha256": stored.fingerprint(teacher),
        "imported": {**imported, "episodes_sha256": episodes},
    }
    if not remake and (index := stored.read_index(folder)) is not None:
        if index.identity == identity:
            return Recording(folder)
        raise ValueError(f"folder must be new, or remake=True, got {folder} with another recording")
    stored.refuse_foreign(folder)
    teacher = copy.deepcopy(teacher).to(device).eval()
    with (
        locked(folder / stored.LOCK_FILE),
        progress_bar(f"importing {dataset.id}", dataset.total_steps) as advance,
    ):
        stored.clear(folder)
        pieces = _imported(dataset, settings, teacher, device, advance)
        stored.write_index(folder, identity, [stored.write_shard(folder, 0, pieces)])
    return Recording(folder)


def _imported(
    dataset: Any,
    settings: AtariSettings,
    teacher: nn.Module,
    device: torch.device | str,
    advance: Advance,
) -> Iterator[tuple[UInt8[np.ndarray, "step height width"], np.ndarray]]:
    for number, episode in enumerate(dataset.iterate_episodes()):
        steps = len(episode.actions)
        frames = _to_frames(np.asarray(episode.observations)[:steps], settings)
        answers = _answers(teacher, frames, settings.stack_num, device)
        if (highest := int(np.max(episode.actions))) >= answers.shape[1]:
            text = f"teacher must have an output for every action of {dataset.id}"
            raise ValueError(f"{text}, got {answers.shape[1]} outputs and action {highest}")
        states = np.zeros(steps, stored.state_dtype(answers.shape[1]))
        states["episode"], states["age"], states["log_probs"] = number, np.arange(steps), answers
        states["action"], states["reward"] = episode.actions, episode.rewards
        states["end"] = stored.ends(episode.terminations, episode.truncations)
        yield frames, states
        advance(steps)


def _answers(
    teacher: nn.Module,
    frames: UInt8[np.ndarray, "step height width"],
    stack_num: int,
    device: torch.device | str,
) -> Float[np.ndarray, "step actions"]:
    black = np.zeros_like(frames, shape=(stack_num - 1, *frames.shape[1:]))
    windows = sliding_window_view(np.concatenate([black, frames]), stack_num, 0)
    stacks = np.moveaxis(windows, -1, 1)
    answers = [
        log_probabilities(teacher, stacks[start : start + _ASKED_AT_ONCE].copy(), device=device)
        for start in range(0, len(frames), _ASKED_AT_ONCE)
    ]
    return np.concatenate(answers)


def _to_frames(
    observations: Shaped[np.ndarray, "step *shape"], settings: AtariSettings
) -> UInt8[np.ndarray, "step height width"]:
    if observations.dtype != np.uint8 or observations.ndim not in (3, 4):
        raise ValueError(
            "observations must be uint8 [height, width], [height, width, 3] or stacks of "
            f"{settings.stack_num} frames, got {observations.dtype} {list(observations.shape[1:])}"
        )
    frames = observations if observations.ndim == 3 else _newest(observations, settings)
    size = (settings.img_height, settings.img_width)
    if frames.shape[1:] == size:
        return frames
    rows, columns = (_areas(old, new) for old, new in zip(frames.shape[1:], size, strict=True))
    return np.asarray(np.rint(rows @ frames.astype(np.float64) @ columns.T), np.uint8)


def _newest(
    observations: UInt8[np.ndarray, "step a b c"], settings: AtariSettings
) -> UInt8[np.ndarray, "step height width"]:
    first, last = observations.shape[1], observations.shape[-1]
    if last < _SMALLEST_SIDE <= first:
        if last == 3 and settings.stack_num != 3:
            return np.asarray(np.rint(observations @ np.array(_LUMINANCE)), np.uint8)
        observations, first = np.moveaxis(observations, -1, 1), last
    if first == 1:
        return observations[:, 0]
    if first != settings.stack_num:
        text = f"observations must be stacks of {settings.stack_num} frames, got {first}"
        raise ValueError(f"{text}: set stack_num in settings")
    if not np.array_equal(observations[1:, :-1], observations[:-1, 1:]):
        text = "observations must be stacks of the last frames, each moved on by one frame"
        raise ValueError(f"{text}: these cannot be rebuilt from single frames")
    return observations[:, -1]


def _areas(old: int, new: int) -> Float[np.ndarray, "new old"]:
    # how much of every old pixel lies in every new one; rows sum to 1
    edges = np.linspace(0, old, new + 1)
    pixels = np.arange(old)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.maximum(overlap, 0.0) * (new / old))
