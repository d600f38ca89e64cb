"""Recorded play of a teacher: pictures stored once, stacks rebuilt exactly, checked when opened."""

import hashlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import nn

from lightning_sobolev._files import read_json, sha256_of
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.atari.storage import ARRAY_FILES, FORMAT_VERSION, INDEX_FILE

_REMEDY = "pass remake=True to record it anew, or delete the folder"


def fingerprint(network: nn.Module) -> str:
    """Hash a network's weights: same names, shapes, types and bytes, same hash.

    Args:
        network: Any module; where it is does not matter.

    Returns:
        A sha256 digest in hexadecimal.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # as bytes, since numpy knows no bfloat16
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity_of(
    settings: AtariSettings,
    teacher: nn.Module,
    *,
    seed: int,
    behavior: Behavior,
    player: nn.Module | None = None,
) -> dict[str, Any]:
    """Gather what decides every byte of a recording, but for its length.

    Args:
        settings: What is played.
        teacher: Who answers, and acts unless the behavior says otherwise.
        seed: Seed of the games and of all draws.
        behavior: Who acts, and how.
        player: Who takes the decisions that are not the teacher's.

    Returns:
        A JSON object; two recordings with the same one agree as far as the shorter goes.

    Raises:
        ValueError: If there is a player that never acts, or none where one is needed.
    """
    behavior.check_player(player)
    return {
        "format": FORMAT_VERSION,
        "settings": asdict(settings),
        "teacher_sha256": fingerprint(teacher),
        "seed": seed,
        **behavior.identity(),
        **({} if player is None else {"player_sha256": fingerprint(player)}),
    }


def read_identity(folder: Path) -> dict[str, Any] | None:
    """Read what a finished recording says of itself.

    Args:
        folder: The recording.

    Returns:
        Its identity, or None where there is no such folder.

    Raises:
        ValueError: If the folder holds no readable index.
    """
    if not folder.exists():
        return None
    index = read_json(folder / INDEX_FILE)
    if index is None:
        raise ValueError(f"damaged recording: {folder / INDEX_FILE} is not readable; {_REMEDY}")
    identity = {key: value for key, value in index.items() if key not in ("counts", "sha256")}
    return _with_defaults(identity)


def _with_defaults(identity: dict[str, Any]) -> dict[str, Any]:
    # a recording may be older than a setting, whose default is what was done before it existed
    if not isinstance(identity.get("settings"), dict):
        return identity
    defaults = {field.name: field.default for field in fields(AtariSettings)}
    return {**identity, "settings": {**defaults, **identity["settings"]}}


class Recording:
    """A finished recording, opened.

    Pictures are mapped, not read: opening costs the checksums (about 1 s per GB, once) and a batch
    costs one indexing of the map.

    Args:
        folder: The recording.
        verify: Whether to compare every file with its checksum.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a file is missing or damaged, or the format is another one.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder = Path(folder)
        if not self.folder.exists():
            raise FileNotFoundError(f"no recording at {self.folder}: call record() first")
        identity = read_identity(self.folder) or {}
        if identity.get("format") != FORMAT_VERSION:
            raise ValueError(
                f"{self.folder} must have format {FORMAT_VERSION}, got {identity.get('format')}; "
                f"{_REMEDY}"
            )
        index = read_json(self.folder / INDEX_FILE) or {}
        if verify:
            self._verify(index.get("sha256", {}))
        self.identity = identity
        self.settings = AtariSettings(**identity["settings"])
        self.frames, self.log_probs, self.states = (self._load(name) for name in ARRAY_FILES)

    def _load(self, name: str) -> np.ndarray:
        path = self.folder / name
        try:
            array: np.ndarray = np.load(path, mmap_mode="r" if name == "frames.npy" else None)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"damaged recording: {path} ({error}); {_REMEDY}") from error
        return array

    def _verify(self, sums: dict[str, str]) -> None:
        for name in ARRAY_FILES:
            path = self.folder / name
            if not path.exists():
                raise ValueError(f"damaged recording: {path} is missing; {_REMEDY}")
            if sha256_of(path) != sums.get(name):
                raise ValueError(
                    f"damaged recording: {path} does not have the checksum of {INDEX_FILE}; "
                    f"{_REMEDY}"
                )

    @classmethod
    def open_as(
        cls, folder: str | Path, identity: dict[str, Any], *, verify: bool = True
    ) -> Self | None:
        """Open a recording if it is the one that is asked for.

        Args:
            folder: The recording.
            identity: What it must say of itself.
            verify: Whether to compare every file with its checksum.

        Returns:
            The recording, or None where it is missing or another one.
        """
        if read_identity(Path(folder)) != identity:
            return None
        return cls(folder, verify=verify)

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
        """Pictures in a stack, their height and width, and the teacher's actions."""
        height, width = self.frames.shape[1:]
        return self.settings.stack_num, int(height), int(width), self.num_actions

    @property
    def episodes(self) -> Int[np.ndarray, " states"]:
        """Number of the episode of every state, counted in the order of their starts."""
        numbers: np.ndarray = self.states["episode"].astype(np.int64)
        return numbers

    def frame_numbers(self, rows: Int[np.ndarray, " batch"]) -> Int[np.ndarray, "batch stack"]:
        """Find the pictures of stacks; none comes from another episode.

        Args:
            rows: Numbers of states.

        Returns:
            Rows of ``frames``, the newest last; 0 (black) before the first of the episode.
        """
        back = np.arange(self.settings.stack_num - 1, -1, -1)
        numbers = 1 + rows[:, None] - back * self.settings.num_envs
        return np.where(self.states["age"][rows][:, None] >= back, numbers, 0)

    def stacks(
        self, rows: Int[np.ndarray, " batch"]
    ) -> UInt8[np.ndarray, "batch stack height width"]:
        """Rebuild the stacks that the teacher saw, bit for bit.

        Args:
            rows: Numbers of states.

        Returns:
            The pictures as bytes, the newest last.
        """
        return np.asarray(self.frames[self.frame_numbers(rows)])

    def teacher_log_probs(
        self, rows: Int[np.ndarray, " batch"]
    ) -> Float[np.ndarray, "batch actions"]:
        """Look up what the teacher answered.

        Args:
            rows: Numbers of states.

        Returns:
            Log-probabilities in float32.
        """
        return np.asarray(self.log_probs[rows])
