"""Write a finished recording, piece by piece: what is in memory is one piece, not the pictures."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int, UInt8

from lightning_sobolev._files import sha256_of, write_json
from lightning_sobolev.atari.environments import AtariSettings
from lightning_sobolev.atari.storage import ARRAY_FILES, INDEX_FILE, STATE, Chunk, beside, swap_in


class RecordingWriter:
    """A recording that grows beside its place and is swapped in when every state is there.

    A context manager: what was not finished is gone behind it.

    Args:
        folder: Where it shall be.
        num_states: How many states will be put.
        settings: What was played; says how large a picture is.
    """

    def __init__(self, folder: Path, num_states: int, settings: AtariSettings) -> None:
        size = (settings.img_height, settings.img_width)
        self._folder = folder
        self._writing = beside(folder, "writing")
        shutil.rmtree(self._writing, ignore_errors=True)
        self._writing.mkdir(parents=True)
        self._log_probs = np.empty((num_states, 0), np.float32)
        self._states = np.empty(num_states, STATE)
        self._missing = np.ones(num_states, bool)
        self._picture_bytes = size[0] * size[1]
        # written, not mapped: the pages of a map would count as this process's memory
        self._file = (self._writing / "frames.npy").open("wb")
        try:
            self._start = self._begin((1 + num_states, *size))
        except OSError:
            self.__exit__()
            raise

    def _begin(self, shape: tuple[int, ...]) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        start = self._file.tell()
        self._file.write(bytes(self._picture_bytes))
        return start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()  # may have to write, and find the disk full
        finally:
            shutil.rmtree(self._writing, ignore_errors=True)

    def put(
        self,
        rows: Int[np.ndarray, " states"],
        frames: UInt8[np.ndarray, "states height width"],
        log_probs: Float[np.ndarray, "states actions"],
        states: np.ndarray,
    ) -> None:
        """Write some states, in any order.

        Args:
            rows: Their numbers.
            frames: The newest picture of each.
            log_probs: What the teacher answers.
            states: One entry of ``STATE`` for each.
        """
        if self._missing.all():
            self._log_probs = np.empty((len(self._states), log_probs.shape[1]), np.float32)
        self._log_probs[rows], self._states[rows] = log_probs, states
        self._missing[rows] = False
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run, pictures in zip(np.split(rows, breaks), np.split(frames, breaks), strict=True):
            self._file.seek(self._start + (1 + int(run[0])) * self._picture_bytes)
            self._file.write(np.ascontiguousarray(pictures).data)

    def finish(self, identity: dict[str, Any], expected: dict[str, str] | None = None) -> None:
        """Complete the files and put the recording in its place.

        Args:
            identity: What makes two recordings the same.
            expected: Checksums that the files must have, by name; None takes them as they are.

        Raises:
            ValueError: If a state is missing or the files are not what was expected.
        """
        self._file.close()
        if self._missing.any():
            raise ValueError(
                f"{len(self._missing)} states must be put, {int(self._missing.sum())} are missing, "
                f"the first is {int(self._missing.argmax())}"
            )
        np.save(self._writing / "log_probs.npy", self._log_probs)
        np.save(self._writing / "states.npy", self._states)
        counts = {
            "num_states": len(self._states),
            "num_episodes": int(self._states["episode"].max()) + 1,
            "num_actions": self._log_probs.shape[1],
        }
        sums = {name: sha256_of(self._writing / name) for name in ARRAY_FILES}
        if expected not in (None, sums):
            raise ValueError(
                "damaged data: the recording does not have the checksums of the one that was stored"
            )
        write_json(self._writing / INDEX_FILE, {**identity, "counts": counts, "sha256": sums})
        swap_in(self._writing, self._folder)


def write_recording(
    folder: Path,
    chunks: Iterable[Chunk],
    num_states: int,
    settings: AtariSettings,
    *,
    identity: dict[str, Any],
) -> None:
    """Write chunks that follow each other as a finished recording.

    Args:
        folder: Where it shall be.
        chunks: Everything that was recorded, in order.
        num_states: States in all of them.
        settings: What was played.
        identity: What makes two recordings the same.
    """
    row = 0
    with RecordingWriter(folder, num_states, settings) as writer:
        for chunk in chunks:
            count = chunk.states.size
            writer.put(
                np.arange(row, row + count),
                chunk.frames.reshape(count, *chunk.frames.shape[2:]),
                chunk.log_probs.reshape(count, -1),
                chunk.states.reshape(count),
            )
            row += count
        writer.finish(identity)
