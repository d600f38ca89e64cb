"""States of recordings as a data set, and which of them train, validate and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from lightning_sobolev._checks import require

STRIDE = 1_000_000_000
"""Distance of the indices of two recordings: they stay the same however long one becomes."""


class Recorded(Protocol):
    """What is served of a recording, of whatever was played.

    ``state_shape`` is that of what a network is shown, and the number of the teacher's answers.
    """

    folder: Path

    @property
    def log_probs(self) -> np.ndarray:
        """The teacher's answers."""
        ...

    @property
    def num_states(self) -> int:
        """States in the recording."""
        ...

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of what a network is shown, and the number of the teacher's answers."""
        ...

    def x(self, rows: Int[np.ndarray, " batch"]) -> np.ndarray:
        """Look up what a network is shown in some states."""
        ...


class RecordedStates(Dataset[dict[str, Tensor]]):
    """Some states of recordings; a whole batch costs one indexing of what is mapped.

    A batch is ``x``, what a network is shown (in a game stacks as bytes), ``log_probs``, the
    teacher's answers, and ``index``, the states' indices ``STRIDE * recording + state``, which stay
    the same whatever the fraction.
    """

    def __init__(
        self, recordings: Sequence[Recorded], rows: Sequence[Int[np.ndarray, " states"]]
    ) -> None:
        self.recordings: tuple[Recorded, ...] = ()
        self.index: Int[np.ndarray, " states"] = np.zeros(0, np.int64)
        for recording, own in zip(recordings, rows, strict=True):
            self.add(recording, own)

    def add(self, recording: Recorded, rows: Int[np.ndarray, " states"]) -> None:
        """Serve states of one more recording, too, after the others."""
        shapes = {str(one.folder): one.state_shape for one in (*self.recordings, recording)}
        if len(set(shapes.values())) != 1:
            text = "recordings must have states of one shape and as many answers"
            raise ValueError(f"{text}, got {shapes}")
        part = len(self.recordings)
        self.recordings = (*self.recordings, recording)
        self.index = np.concatenate([self.index, part * STRIDE + rows.astype(np.int64)])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        index = self.index[np.asarray(positions)]
        parts, rows = np.divmod(index, STRIDE)
        *shape, num_answers = self.recordings[0].state_shape
        x = np.empty((len(index), *shape), self.recordings[0].x(rows[:0]).dtype)
        log_probs = np.empty((len(index), num_answers), np.float32)
        for part in np.unique(parts):
            own, recording = parts == part, self.recordings[part]
            x[own] = recording.x(rows[own])
            log_probs[own] = recording.log_probs[rows[own]]
        batch = {"x": x, "log_probs": log_probs, "index": index}
        return {name: torch.from_numpy(array) for name, array in batch.items()}


class Split(NamedTuple):
    """Numbers of states; no episode is in two of the three."""

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """How many states are wanted of each kind.

    Args:
        train: States that fraction 1 takes; None takes all of recordings that are there already.
        validation: States to watch the training with.
        test: States to judge by.
    """

    train: int | None = 40_000
    validation: int = 1_000
    test: int = 4_000

    def __post_init__(self) -> None:
        train = 1 if self.train is None else self.train
        counts = {"train": train, "validation": self.validation, "test": self.test}
        for name, count in counts.items():
            is_whole = type(count) is int and count >= 1
            require(is_whole, name, "a whole number of states >= 1", count)

    @property
    def total(self) -> int:
        """All states together."""
        return (self.train or 0) + self.validation + self.test


# Whole episodes are dealt in their order: first to the test set until it is full, then to
# validation, the others to training. So a longer recording gives the same split, and the test
# states are the same whatever the number of training states. The wanted number of test and
# validation states is spread evenly over their episodes.


def split_by_episode(shards: Sequence[Sequence[int]], sizes: SplitSizes) -> Split | None:
    """Split as few shards as suffice, given the lengths of their episodes; None if none do."""
    lengths: list[int] = []
    for shard in shards:
        lengths.extend(shard)
        if split := _deal(lengths, sizes.train or 1, sizes.validation, sizes.test):
            return split
    return None


def split_all(recordings: Mapping[str, Sequence[int]], sizes: SplitSizes) -> list[Split]:
    """Split several recordings by their own episodes, with test states in proportion to length."""
    totals = np.array([sum(lengths) for lengths in recordings.values()])
    shares = zip(_share(sizes.validation, totals), _share(sizes.test, totals), strict=True)
    splits = []
    for (name, lengths), (validation, test) in zip(recordings.items(), shares, strict=True):
        split = _deal(lengths, 1, int(validation), int(test))
        if split is None:
            raise ValueError(
                f"{name} must have whole episodes for {test} test, {validation} validation and "
                f"some training states, got {len(lengths)} episodes of {sum(lengths)} states"
            )
        splits.append(split)
    return splits


def _share(count: int, lengths: Int[np.ndarray, " parts"]) -> Int[np.ndarray, " parts"]:
    # rounded so that the parts still sum to the number
    ends = np.round(count * np.cumsum(lengths) / lengths.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


def _deal(lengths: Sequence[int], train: int, validation: int, test: int) -> Split | None:
    ends = np.cumsum([0, *lengths])
    if ends[-1] < test + validation + train:
        return None
    test_end = ends[np.searchsorted(ends, test)]
    later = ends[ends >= test_end + validation]
    if len(later) == 0 or ends[-1] - later[0] < train:
        return None
    parts = np.split(np.arange(ends[-1]), [test_end, later[0]])
    return Split(parts[2], _spread(parts[1], validation), _spread(parts[0], test))


def _spread(rows: Int[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " count"]:
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def choose_fraction(
    num_rows: int, num_states: int, fraction: float, seed: int | tuple[int, ...]
) -> Int[np.ndarray, " chosen"]:
    """Choose positions at random, of which a smaller fraction has a part of a larger one's."""
    require(0.0 < fraction <= 1.0, "fraction", "in (0, 1]", fraction)
    if num_states > num_rows:
        raise ValueError(
            f"train must be at most {num_rows} states, those that are there beside test and "
            f"validation, got {num_states}"
        )
    if (count := round(fraction * num_states)) < 1:
        raise ValueError(f"fraction must leave a state of {num_states}, got {fraction}")
    return np.random.default_rng(seed).permutation(num_rows)[:count]
