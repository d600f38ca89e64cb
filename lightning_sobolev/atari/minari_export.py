"""Write a recording as a Minari data set, from which it comes back bit for bit.

Every observation is one picture ``[1, height, width]`` or a stack; the axis of length 1 keeps
Minari from compressing pictures with losses. What Minari has no place for is in the infos, one
entry for each observation:

- ``teacher_log_probs``: what the teacher answered (NaN behind the last step);
- ``state``: the state's number in the recording (-1 behind the last step);
- ``end``: how the step ended the episode, see :mod:`~lightning_sobolev.atari.storage`.

The observation behind the last step of an episode is black: a recording does not hold it. Episodes
that were still running are marked as truncated.
"""

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete

from lightning_sobolev._files import read_json
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.recording import Recording
from lightning_sobolev.atari.storage import CONTINUES, INDEX_FILE, TERMINATED, swap_in

ABOUT = "lightning_sobolev"
"""Entry of a data set's metadata that says from which recording it was made."""


def load_minari() -> Any:
    """Import Minari.

    Returns:
        The package.

    Raises:
        ModuleNotFoundError: If it or its storage is not installed.
    """
    try:
        for storage in ("h5py", "PIL"):
            importlib.import_module(storage)
        return importlib.import_module("minari")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data sets of Minari need minari, h5py and PIL ({error}): install the extra 'minari'"
        ) from error


def export_minari(
    recording: Recording,
    dataset_id: str,
    *,
    stacked: bool = False,
    description: str | None = None,
    replace: bool = False,
    progress: bool = True,
) -> Path:
    """Write a recording as a local Minari data set, whole or not at all.

    Args:
        recording: What to write.
        dataset_id: Name with a version, e.g. ``"pong/teacher-v0"``.
        stacked: Whether an observation is the whole stack that the teacher saw. Otherwise it is its
            newest picture, which takes a fourth of the space.
        description: What the data set is, for people.
        replace: Whether a data set of this name is replaced.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The folder of the data set.

    Raises:
        ValueError: If the name has another form or is taken.
    """
    minari = load_minari()
    place = _place(minari, dataset_id)
    if place.exists() and not replace:
        raise ValueError(f"dataset_id must be new or replace=True, got {dataset_id!r} at {place}")
    writing = place.with_name(f".{place.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    settings = recording.settings
    shape = (settings.stack_num if stacked else 1, settings.img_height, settings.img_width)
    storage = minari.dataset.minari_storage.MinariStorage.new(
        writing / "data",
        observation_space=Box(0, 255, shape, np.uint8),
        action_space=Discrete(recording.num_actions),
    )
    about = description or f"Play of {settings.game} with a teacher's answers."
    storage.update_metadata(_metadata(minari, recording, dataset_id, about))
    with progress_bar(f"exporting {dataset_id}", recording.num_states, enabled=progress) as advance:
        storage.update_episodes(_episodes(minari, recording, stacked=stacked, advance=advance))
    swap_in(writing, place)
    return place


def _metadata(
    minari: Any, recording: Recording, dataset_id: str, description: str
) -> dict[str, Any]:
    index = read_json(recording.folder / INDEX_FILE) or {}
    origin = {
        "identity": recording.identity,
        "sha256": index["sha256"],
        "num_states": recording.num_states,
    }
    return {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "algorithm_name": f"policy {recording.identity['teacher_sha256'][:16]}",
        "description": description,
        # as text, so that nobody's reader of metadata trips over what is nested
        ABOUT: json.dumps(origin),
    }


def _place(minari: Any, dataset_id: str) -> Path:
    try:
        namespace, _, _ = minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"dataset_id must look like 'pong/teacher-v0', got {dataset_id!r}"
        ) from error
    if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    return Path(minari.storage.get_dataset_path(dataset_id))


def _episodes(
    minari: Any, recording: Recording, *, stacked: bool, advance: Advance
) -> Iterator[Any]:
    order = np.argsort(recording.episodes, kind="stable")
    buffer = minari.data_collector.episode_buffer.EpisodeBuffer
    for rows in np.split(order, np.cumsum(np.bincount(recording.episodes))[:-1]):
        states = recording.states[rows]
        pictures = recording.stacks(rows) if stacked else recording.frames[1 + rows][:, None]
        log_probs = recording.teacher_log_probs(rows)
        last = np.arange(len(rows)) == len(rows) - 1
        terminations = states["end"] == TERMINATED
        yield buffer(
            observations=_padded(pictures, 0),
            actions=states["action"].astype(np.int64),
            rewards=states["reward"],
            terminations=terminations,
            truncations=last & ~terminations,
            infos={
                "teacher_log_probs": _padded(log_probs, np.nan),
                "state": _padded(rows, -1),
                "end": _padded(states["end"], CONTINUES),
            },
        )
        advance(len(rows))


def _padded(values: np.ndarray, filling: float) -> np.ndarray:
    """Add the entry that belongs to the observation behind the last step."""
    return np.concatenate([values, np.full_like(values[:1], filling)])
