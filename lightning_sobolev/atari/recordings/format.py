"""A recording on the disk: shards of whole episodes, an index, checksums of everything.

A recording is a folder of

- ``shard-00000.frames``: uint8 ``[states, height, width]``, the newest frame of every state, each
  once, in the order in which they were seen;
- ``shard-00000.states.npy``: one row of :func:`state_dtype` per state, episode after episode;
- ``shard-00001...``;
- ``index.json``: format, identity (settings, teacher, behavior, seed), the shards that count with
  their checksums, and a checksum of the index itself.

A shard is written before the index names it and never changes afterwards. So a recording is whole
at any time, what a killed process leaves is no part of it, and a longer recording is a shorter one
with more shards.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import nn

from lightning_sobolev._files import read_json, sha256_of, whole, write_json
from lightning_sobolev.atari.environments import AtariSettings

FORMAT_VERSION = 2
INDEX_FILE = "index.json"
LOCK_FILE = ".lock"
CONTINUES, TERMINATED, TRUNCATED = 0, 1, 2

_REMEDY = "pass remake=True to record it anew, or delete the folder"
_DAMAGED = "damaged recording: {path} ({error}); " + _REMEDY
_OWN_NAMES = re.compile(r"(index\.json|shard-\d{5}\.(frames|states\.npy))(\.[0-9a-f]{8}\.tmp)?")


def state_dtype(num_actions: int) -> np.dtype:
    """Return what is stored of a state; ``log_probs`` is what the teacher answers."""
    place = [("episode", "<i4"), ("age", "<i4"), ("frame", "<i4")]  # a row of the shard's frames
    played = [("action", "u1"), ("reward", "<f4"), ("end", "u1")]
    return np.dtype([*place, *played, ("log_probs", "<f4", (num_actions,))])


def ends(
    terminated: Bool[np.ndarray, " states"], truncated: Bool[np.ndarray, " states"]
) -> Int[np.ndarray, " states"]:
    """Say in a number whether an episode goes on, or how it ended."""
    return np.where(terminated, TERMINATED, np.where(truncated, TRUNCATED, CONTINUES))


def fingerprint(network: nn.Module) -> str:
    """Hash a network's weights: same names, shapes, types and bytes, same hash, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes, since numpy knows no bfloat16
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Shard:
    """What the index says of a shard."""

    episode_lengths: list[int]
    frames_sha256: str
    states_sha256: str

    @property
    def num_states(self) -> int:
        """States of all its episodes."""
        return sum(self.episode_lengths)


class Index(NamedTuple):
    """What makes two recordings the same, and the shards that are there."""

    identity: dict[str, Any]
    shards: list[Shard]


def _shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    name = f"shard-{number:05d}"
    return folder / f"{name}.frames", folder / f"{name}.states.npy"


def write_shard(
    folder: Path,
    number: int,
    pieces: Iterable[tuple[UInt8[np.ndarray, "states height width"], np.ndarray]],
) -> Shard:
    """Write the files of a shard, frames as they come; return what the index shall say of it."""
    frames_path, states_path = _shard_files(folder, number)
    parts, count = [], 0
    with whole(frames_path) as writing, writing.open("wb") as file:
        for frames, states in pieces:
            file.write(np.ascontiguousarray(frames).data)
            states["frame"] = np.arange(count, count + len(states))
            count += len(states)
            parts.append(states)
    states = np.concatenate(parts)
    lengths = np.unique(states["episode"], return_counts=True)[1].tolist()
    content = io.BytesIO()  # np.save to a file would not tell of a disk that is full at the end
    np.save(content, states[np.lexsort((states["age"], states["episode"]))])
    with whole(states_path) as writing:
        writing.write_bytes(content.getbuffer())
    return Shard(lengths, sha256_of(frames_path), sha256_of(states_path))


def write_index(folder: Path, identity: dict[str, Any], shards: list[Shard]) -> None:
    """Say which shards count: from now on they are the recording."""
    said = [asdict(shard) for shard in shards]
    content = {"format": FORMAT_VERSION, "identity": identity, "shards": said}
    write_json(folder / INDEX_FILE, {**content, "sha256": checksum(content)})


def checksum(content: dict[str, Any]) -> str:
    """Hash what an index says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_index(folder: Path) -> Index | None:
    """Read what a recording says of itself, or None where there is none; refuse a damaged one."""
    if not (path := folder / INDEX_FILE).exists():
        return None
    content = read_json(path)
    if content is None:
        raise ValueError(_DAMAGED.format(path=path, error="is not readable"))
    if content.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} must have format {FORMAT_VERSION}, got {content.get('format')}, of another "
            "version of this package: delete the folder to record anew"
        )
    if content.pop("sha256", None) != checksum(content):
        raise ValueError(_DAMAGED.format(path=path, error="does not have its own checksum"))
    identity = content["identity"]
    # a recording may be older than a setting, whose default is what was done before it existed
    identity["settings"] = asdict(AtariSettings(**identity["settings"]))
    return Index(identity, [Shard(**shard) for shard in content["shards"]])


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder of other things: a mistyped path must not cost anyone theirs."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if foreign := sorted(name for name in names - {LOCK_FILE} if not _OWN_NAMES.fullmatch(name)):
        raise ValueError(f"folder must hold a recording or nothing, got {folder} with {foreign}")


def clear(folder: Path, *, keep: Index | None = None) -> None:
    """Delete what an index does not name, or a whole recording. Only under the lock."""
    kept: set[Path] = set()
    if keep is None:
        refuse_foreign(folder)
    else:
        kept.add(folder / INDEX_FILE)
        kept.update(*(_shard_files(folder, number) for number in range(len(keep.shards))))
    for path in sorted(folder.iterdir()):  # the index comes first: without it nothing is here
        if path not in kept and _OWN_NAMES.fullmatch(path.name):
            path.unlink()


class Recording:
    """A finished recording, opened.

    Frames are mapped, not read: opening costs the checksums (about 1 s per GB, once) and a batch
    costs one indexing of each shard's map.

    Args:
        folder: The recording.
        verify: Whether to compare every file with its checksum.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if index is None:
            raise FileNotFoundError(f"no recording at {self.folder}: call record() first")
        self.identity = index.identity
        self.settings = AtariSettings(**index.identity["settings"])
        opened = [self._open(*shard, verify) for shard in enumerate(index.shards)]
        self._frames = [frames for frames, _ in opened]
        self.states = np.concatenate([states for _, states in opened])
        answers: Float[np.ndarray, "states actions"] = self.states["log_probs"]
        self.log_probs = np.ascontiguousarray(answers)
        self.episode_lengths = [shard.episode_lengths for shard in index.shards]
        self._ends = np.cumsum([shard.num_states for shard in index.shards])

    def _open(self, number: int, shard: Shard, verify: bool) -> tuple[np.ndarray, np.ndarray]:
        size = (shard.num_states, self.settings.img_height, self.settings.img_width)
        path, states_path = _shard_files(self.folder, number)
        try:
            _verify(path, shard.frames_sha256 if verify else None)
            frames = np.memmap(path, np.uint8, "r", shape=size)
            path = states_path
            _verify(path, shard.states_sha256 if verify else None)
            states: np.ndarray = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(_DAMAGED.format(path=path, error=error)) from error
        return frames, states

    @property
    def num_states(self) -> int:
        """States in the recording."""
        return len(self.states)

    @property
    def num_actions(self) -> int:
        """Actions of the teacher."""
        return int(self.log_probs.shape[1])

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Frames in a stack, their height and width, and the teacher's actions."""
        seen = self.settings
        return seen.stack_num, seen.img_height, seen.img_width, self.num_actions

    @property
    def episodes(self) -> Int[np.ndarray, " states"]:
        """Number of the episode of every state; it never decreases."""
        return np.asarray(self.states["episode"], np.int64)

    def frames(self, rows: Int[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch height width"]:
        """Look up the newest frame of each state."""
        shards = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), *self._frames[0].shape[1:]), np.uint8)
        for shard in np.unique(shards):
            own = shards == shard
            found[own] = self._frames[shard][self.states["frame"][rows[own]]]
        return found

    def stacks(
        self, rows: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch stack height width"]:
        """Rebuild the stacks that the teacher saw, bit for bit; the newest frame is the last."""
        back = np.arange(self.settings.stack_num - 1, -1, -1)
        is_before_start = self.states["age"][rows][:, None] < back
        numbers = np.where(is_before_start, rows[:, None], rows[:, None] - back)
        stacks = self.frames(numbers.ravel()).reshape(-1, *self.state_shape[:-1])
        stacks[is_before_start] = 0
        return stacks

    def x(self, rows: Int[np.ndarray, " batch"]) -> UInt8[np.ndarray, "batch stack height width"]:
        """Look up what a network is shown: :meth:`stacks`."""
        return self.stacks(rows)


def _verify(path: Path, digest: str | None) -> None:
    if digest is not None and sha256_of(path) != digest:
        raise ValueError(f"does not have the checksum of {INDEX_FILE}")
