"""Which recorded states train, validate and test: whole episodes apart, exact numbers of states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Split(NamedTuple):
    """Numbers of states; no episode is in two of the three."""

    train: Int[np.ndarray, " train"]
    validation: Int[np.ndarray, " validation"]
    test: Int[np.ndarray, " test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """How many states are wanted of each kind.

    Args:
        train: States to draw fractions from.
        validation: States to watch the training with.
        test: States to judge by.

    Raises:
        ValueError: If a number is not positive.
    """

    train: int
    validation: int
    test: int

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 state, got {getattr(self, name)}")

    @property
    def total(self) -> int:
        """All states together."""
        return self.train + self.validation + self.test


def split_by_episode(
    episodes: Int[np.ndarray, " states"], sizes: SplitSizes, *, num_envs: int
) -> Split | int:
    """Split the shortest beginning of a recording that is long enough.

    Episodes are dealt in the order of their starts: first to the test set until it is full, then to
    validation, the others to training. So a longer recording gives the same split. The wanted
    number of test and validation states is spread evenly over their episodes.

    Args:
        episodes: Number of the episode of every state, in the order of recording.
        sizes: How many states are wanted.
        num_envs: States in a step of the recording.

    Returns:
        The split, or how many states the recording must have before there is one.
    """
    needed = -(-sizes.total // num_envs) * num_envs
    while needed <= len(episodes):
        split, missing = _deal(episodes[:needed], sizes.train, sizes.validation, sizes.test)
        if missing == 0:
            return split
        needed += -(-missing // num_envs) * num_envs
    return needed


def split_all(
    episodes: Mapping[str, Int[np.ndarray, " states"]], *, num_test: int, num_validation: int
) -> list[Split]:
    """Split several recordings, each by its own episodes.

    Every recording gives test and validation states in proportion to its length, so that both are
    of the same kind as what is trained on. All states of the other episodes are left for training.

    Args:
        episodes: Number of the episode of every state, for each recording by its name.
        num_test: Test states of all recordings together.
        num_validation: Validation states of all recordings together.

    Returns:
        One split for each recording.

    Raises:
        ValueError: If the episodes of a recording do not suffice.
    """
    lengths = np.array([len(numbers) for numbers in episodes.values()])
    tests, validations = _share(num_test, lengths), _share(num_validation, lengths)
    splits = []
    for part, (name, numbers) in enumerate(episodes.items()):
        sizes = (1, int(validations[part]), int(tests[part]))
        split, missing = _deal(numbers, *sizes)
        if missing > 0:
            raise ValueError(
                f"{name} must have whole episodes for {sizes[2]} test, {sizes[1]} "
                f"validation and some training states, got {numbers.max() + 1} episodes of "
                f"{len(numbers)} states"
            )
        splits.append(split)
    return splits


def _share(count: int, lengths: Int[np.ndarray, " parts"]) -> Int[np.ndarray, " parts"]:
    """Divide a number in proportion, rounding so that the parts still sum to it."""
    ends = np.round(count * np.cumsum(lengths) / lengths.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


def _deal(
    episodes: Int[np.ndarray, " states"], num_train: int, num_validation: int, num_test: int
) -> tuple[Split, int]:
    ends = np.cumsum(np.bincount(episodes))
    last_test = int(np.searchsorted(ends, num_test)) if num_test else -1
    behind = ends - (ends[min(last_test, len(ends) - 1)] if num_test else 0)
    last_validation = int(np.searchsorted(behind, num_validation)) if num_validation else last_test
    test = np.flatnonzero(episodes <= last_test)
    validation = np.flatnonzero((episodes > last_test) & (episodes <= last_validation))
    train = np.flatnonzero(episodes > last_validation)
    wanted = ((train, num_train), (validation, num_validation), (test, num_test))
    missing = sum(max(0, size - len(rows)) for rows, size in wanted)
    return Split(train, _spread(validation, num_validation), _spread(test, num_test)), missing


def _spread(rows: Int[np.ndarray, " rows"], count: int) -> Int[np.ndarray, " count"]:
    kept = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    chosen: np.ndarray = rows[kept]
    return chosen


def choose_fraction(
    train: Int[np.ndarray, " train"],
    *,
    num_states: int,
    fraction: float,
    seed: int | tuple[int, ...],
) -> Int[np.ndarray, " chosen"]:
    """Choose training states at random; a smaller fraction is part of a larger one.

    Args:
        train: Training states; at least ``num_states``.
        num_states: States that fraction 1 takes.
        fraction: Part of ``num_states`` to take.
        seed: Seed of the choice.

    Returns:
        The chosen states, in random order.

    Raises:
        ValueError: If the fraction is not in (0, 1] or leaves no state.
    """
    if not 0.0 < fraction <= 1.0:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if round(fraction * num_states) < 1:
        raise ValueError(f"fraction must leave a state of {num_states}, got {fraction}")
    order = np.random.default_rng(seed).permutation(train)
    return order[: round(fraction * num_states)]
