"""Files of a recording: names, format, chunks, and swaps that leave no half-written folder.

A finished recording is a folder of

- ``frames.npy``: uint8 ``[1 + states, height, width]``, each picture once; row 0 is black, the
  picture before the first of an episode; row ``1 + n`` is the newest picture of state n;
- ``log_probs.npy``: float32 ``[states, actions]``, the teacher's log-probabilities;
- ``states.npy``: one row of :data:`STATE` per state;
- ``index.json``: format, identity (settings, teacher, seed, behavior), counts, checksums.

State ``n`` is step ``n // num_envs`` of game ``n % num_envs``. An unfinished recording is a folder
``*.partial`` of numbered chunks, from which the work goes on.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from lightning_sobolev._files import whole

FORMAT_VERSION = 1
INDEX_FILE = "index.json"
ARRAY_FILES = ("frames.npy", "log_probs.npy", "states.npy")
CONTINUES, TERMINATED, TRUNCATED = 0, 1, 2
STATE = np.dtype(
    [("episode", "<i4"), ("age", "<i4"), ("action", "u1"), ("reward", "<f4"), ("end", "u1")]
)
"""Number of the episode, steps since its start, and what was done and came of it."""


class Chunk(NamedTuple):
    """Consecutive steps of all games."""

    frames: UInt8[np.ndarray, "step env height width"]
    log_probs: Float[np.ndarray, "step env actions"]
    states: np.ndarray

    def __len__(self) -> int:
        """Steps in the chunk, not fields of the tuple."""
        return int(self.states.shape[0])


def beside(folder: Path, suffix: str) -> Path:
    """Name a working folder next to a recording.

    Args:
        folder: The recording.
        suffix: What the folder is for.

    Returns:
        Its path, on the same file system, so that a rename is atomic.
    """
    return folder.with_name(f"{folder.name}.{suffix}")


def write_chunk(partial: Path, first_step: int, chunk: Chunk) -> None:
    """Add a chunk to an unfinished recording, whole or not at all.

    Args:
        partial: Folder of the unfinished recording.
        first_step: Step of the games with which the chunk begins.
        chunk: What was recorded.
    """
    path = partial / f"chunk-{first_step:08d}.npz"
    with whole(path) as writing, writing.open("wb") as file:
        np.savez(file, **chunk._asdict())


def read_chunks(partial: Path, first_step: int) -> Iterator[Chunk]:
    """Read the chunks that follow each other without a gap, one at a time.

    Stops at the first missing or damaged one: what comes after it cannot be used.

    Args:
        partial: Folder of the unfinished recording.
        first_step: Step with which the first chunk begins.

    Yields:
        The chunks in order.
    """
    while (path := partial / f"chunk-{first_step:08d}.npz").exists():
        try:
            # the zip format carries a checksum of every member
            with path.open("rb") as file, np.load(file) as arrays:
                chunk = Chunk(*(arrays[name] for name in Chunk._fields))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return
        yield chunk
        first_step += len(chunk)


def swap_in(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one.

    Args:
        new: The finished folder.
        folder: Its place. After a crash between the two renames :func:`recover` mends it.
    """
    old = beside(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo a swap that was interrupted between its two renames.

    Args:
        folder: Place of the recording.
    """
    old = beside(folder, "old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Let one process at a time work on a recording; the others wait.

    Args:
        folder: Place of the recording.

    Yields:
        Nothing; the lock is held meanwhile and falls with the process.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with beside(folder, "lock").open("w") as file:
        try:
            import fcntl
        except ImportError:  # not POSIX: two processes must not record into one folder
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
