"""Make a recording of a Minari data set: exactly the one it was exported from, or a new one."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.conversion import to_pictures
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.minari_episodes import Answers, Episodes, states_of
from lightning_sobolev.atari.minari_export import ABOUT, load_minari
from lightning_sobolev.atari.recording import Recording, fingerprint, read_identity
from lightning_sobolev.atari.replacing import difference, forget
from lightning_sobolev.atari.storage import FORMAT_VERSION, lock, recover
from lightning_sobolev.atari.writing import RecordingWriter


class Origin(NamedTuple):
    """What an exported data set says of its recording."""

    identity: dict[str, Any]
    sha256: dict[str, str]
    num_states: int

    @property
    def settings(self) -> AtariSettings:
        """What was played."""
        return AtariSettings(**self.identity["settings"])


def import_minari(
    dataset: Any,
    folder: str | Path,
    *,
    teacher: nn.Module | None = None,
    settings: AtariSettings | None = None,
    device: torch.device | str = "cpu",
    remake: bool = False,
    progress: bool = True,
) -> Recording:
    """Make a recording of a local Minari data set, whole or not at all.

    One that :func:`export_minari` wrote gives back its recording bit for bit, checked against the
    checksums of then. Some of its episodes keep the stored answers. In every other case, and where
    another teacher is given, the teacher is asked. Nothing is downloaded.

    Args:
        dataset: Its name, or a ``minari.MinariDataset``, for instance one with some episodes only.
        folder: Where the recording shall be; one that was imported from the same is opened.
        teacher: Maps scaled stacks to logits; it is copied. None takes the stored answers.
        settings: What the pictures are meant to be; ``num_envs`` is ignored. None takes those of
            the exported recording, or the defaults with the game that the data set names.
        device: Where the teacher works.
        remake: Whether to forget what is in the folder.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The recording, checked.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If a teacher is needed and missing, the folder holds something else, or the
            data set is damaged or does not fit the settings or the teacher.
    """
    dataset, folder = _load(dataset), Path(folder)
    origin = _origin_of(dataset)
    source: Episodes | _Whole
    if origin is None:
        source = Episodes(dataset, settings, Answers(teacher, None, device))
    elif not _is_asked_for(origin, teacher, settings):
        source = Episodes(dataset, settings or origin.settings, Answers(teacher, None, device))
    elif dataset.total_steps == origin.num_states:
        source = _Whole(dataset, origin)
    else:
        stored = Answers(None, origin.identity["teacher_sha256"], device)
        source = Episodes(dataset, origin.settings, stored)
    with lock(folder):
        recover(folder)
        if remake:
            forget(folder)
        if not _is_there(folder, source.identity()):
            with progress_bar("importing", dataset.total_steps, enabled=progress) as advance:
                source.write(folder, advance)
        return Recording(folder)


def _load(dataset: Any) -> Any:
    minari = load_minari()
    if not isinstance(dataset, str):
        return dataset
    try:
        return minari.load_dataset(dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"dataset must be here, got {dataset!r}: 'minari download {dataset}' fetches it"
        ) from error


def _origin_of(dataset: Any) -> Origin | None:
    text = dataset.storage.metadata.get(ABOUT)
    origin = None if text is None else Origin(**json.loads(text))
    if origin is not None and origin.identity.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"dataset must come from a recording of format {FORMAT_VERSION}, got "
            f"{origin.identity.get('format')}"
        )
    return origin


def _is_asked_for(
    origin: Origin, teacher: nn.Module | None, settings: AtariSettings | None
) -> bool:
    same_teacher = teacher is None or fingerprint(teacher) == origin.identity["teacher_sha256"]
    return same_teacher and settings in (None, origin.settings)


def _is_there(folder: Path, identity: dict[str, Any]) -> bool:
    found = read_identity(folder)
    if found not in (None, identity):
        raise ValueError(
            f"folder must be new, or remake=True, got {folder} with another recording "
            f"({difference(found, identity)})"
        )
    return found is not None


class _Whole:
    """All of an exported recording: every state goes back to where it was."""

    def __init__(self, dataset: Any, origin: Origin) -> None:
        self._dataset = dataset
        self._origin = origin

    def identity(self) -> dict[str, Any]:
        return self._origin.identity

    def write(self, folder: Path, advance: Advance) -> None:
        settings, count = self._origin.settings, self._origin.num_states
        with RecordingWriter(folder, count, settings) as writer:
            for number, episode in enumerate(self._dataset.iterate_episodes()):
                steps = len(episode)
                rows = episode.infos["state"][:steps]
                if not np.isin(rows, np.arange(count)).all():
                    raise ValueError(
                        f"damaged data set: states of episode {number} must lie in 0..{count - 1}, "
                        f"got {rows.min()}..{rows.max()}"
                    )
                writer.put(
                    rows,
                    to_pictures(episode.observations[:steps], settings),
                    episode.infos["teacher_log_probs"][:steps],
                    states_of(episode, number, episode.infos["end"][:steps]),
                )
                advance(steps)
            writer.finish(self._origin.identity, expected=self._origin.sha256)
