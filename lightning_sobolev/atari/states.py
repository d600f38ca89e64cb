"""States of one or several recordings as one data set."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev.atari.recording import Recording

STRIDE = 1_000_000_000
"""Distance of the indices of two recordings: they stay the same however long one becomes."""


def indices_of(part: int, rows: Int[np.ndarray, " states"]) -> Int[np.ndarray, " states"]:
    """Number states over several recordings.

    Args:
        part: Which recording; the states of the first keep their own numbers.
        rows: Numbers of states in it.

    Returns:
        Their indices.
    """
    return part * STRIDE + rows.astype(np.int64)


class RecordedStates(Dataset[dict[str, Tensor]]):
    """Some states of recordings; a whole batch costs one indexing of each one's mapped pictures.

    Args:
        recordings: Where the states are; pictures and actions alike in all of them.
        index: Which states, see :func:`indices_of`, in the order of their positions.

    Raises:
        ValueError: If the recordings do not go together.
    """

    def __init__(self, recordings: Sequence[Recording], index: Int[np.ndarray, " states"]) -> None:
        self.recordings = tuple(recordings)
        self.index = index
        shapes = {one.state_shape: one.folder for one in self.recordings}
        if len(shapes) != 1:
            raise ValueError(
                "recordings must have stacks of one shape and as many actions, got "
                + ", ".join(f"{shape} in {folder}" for shape, folder in shapes.items())
            )

    def __len__(self) -> int:
        """Number of states."""
        return len(self.index)

    def __getitem__(self, positions: Int[np.ndarray, " batch"]) -> dict[str, Tensor]:
        """Look up a batch.

        Args:
            positions: Which of the states.

        Returns:
            ``x``: stacks as bytes; ``log_probs``: the teacher's answer; ``index``: the states'
            indices, which stay the same whatever the fraction.
        """
        index = self.index[positions]
        parts, rows = np.divmod(index, STRIDE)
        *stack, num_actions = self.recordings[0].state_shape
        x = np.empty((len(index), *stack), np.uint8)
        log_probs = np.empty((len(index), num_actions), np.float32)
        for part in np.unique(parts):
            own, recording = parts == part, self.recordings[part]
            x[own] = recording.stacks(rows[own])
            log_probs[own] = recording.teacher_log_probs(rows[own])
        return {
            "x": torch.from_numpy(x),
            "log_probs": torch.from_numpy(log_probs),
            "index": torch.from_numpy(index),
        }
