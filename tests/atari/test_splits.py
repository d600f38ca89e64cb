from itertools import pairwise

import numpy as np
import pytest

from lightning_sobolev.atari.splits import (
    SplitSizes,
    choose_fraction,
    split_all,
    split_by_episode,
)


def random_episodes(seed, steps=400, num_envs=5, mean_length=30):
    rng = np.random.default_rng(seed)
    now, count, rows = np.arange(num_envs), num_envs, []
    for _ in range(steps):
        rows.append(now.copy())
        for env in np.flatnonzero(rng.random(num_envs) < 1 / mean_length):
            now[env], count = count, count + 1
    return np.concatenate(rows)


SIZES = SplitSizes(train=700, validation=40, test=130)


@pytest.mark.parametrize("seed", range(8))
def test_no_episode_is_in_two_parts_and_sizes_are_exact(seed):
    episodes = random_episodes(seed)
    split = split_by_episode(episodes, SIZES, num_envs=5)
    parts = [set(episodes[rows]) for rows in split]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert (len(split.validation), len(split.test)) == (40, 130)
    assert len(split.train) >= 700
    assert all(len(np.unique(rows)) == len(rows) for rows in split)


@pytest.mark.parametrize("seed", range(4))
def test_a_longer_recording_gives_the_same_split(seed):
    episodes = random_episodes(seed)
    whole = split_by_episode(episodes, SIZES, num_envs=5)
    needed = split_by_episode(episodes[:0], SIZES, num_envs=5)
    while isinstance(again := split_by_episode(episodes[:needed], SIZES, num_envs=5), int):
        assert again > needed
        needed = again
    assert needed < len(episodes)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_game_at_a_time_is_split_too():
    episodes = np.repeat(np.arange(10), 50)
    split = split_by_episode(episodes, SplitSizes(train=100, validation=10, test=60), num_envs=1)
    assert set(episodes[split.test]) == {0, 1}
    assert set(episodes[split.validation]) == {2}
    assert set(episodes[split.train]) == {3, 4}


def test_fractions_are_nested_and_random():
    train = np.arange(100, 1100)
    parts = [
        choose_fraction(train, num_states=900, fraction=f, seed=0)
        for f in (1 / 64, 1 / 16, 1 / 8, 1)
    ]
    assert [len(part) for part in parts] == [14, 56, 112, 900]
    for small, large in pairwise(parts):
        assert set(small) < set(large)
    other = choose_fraction(train, num_states=900, fraction=1 / 8, seed=1)
    assert set(other) != set(parts[2])


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must be in \(0, 1\], got {fraction}"):
        choose_fraction(np.arange(10), num_states=10, fraction=fraction, seed=0)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_empty_parts_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1 state, got 0"):
        SplitSizes(**{"train": 1, "validation": 1, "test": 1, name: 0})


@pytest.mark.parametrize("counts", [(60, 20), (61, 1), (1, 7)])
def test_several_recordings_are_split_each_by_its_episodes(counts):
    episodes = [
        random_episodes(0, steps=300),
        random_episodes(1, steps=80),
        np.repeat(np.arange(4), 25),
    ]
    splits = split_all(named(episodes), num_test=counts[0], num_validation=counts[1])
    for numbers, split in zip(episodes, splits, strict=True):
        parts = [set(numbers[rows]) for rows in split]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(split.train) > 0
    assert sum(len(split.test) for split in splits) == counts[0]
    assert sum(len(split.validation) for split in splits) == counts[1]


def test_test_states_come_from_all_recordings_in_proportion():
    episodes = [np.repeat(np.arange(30), 10), np.repeat(np.arange(10), 10)]
    splits = split_all(named(episodes), num_test=40, num_validation=20)
    assert [len(split.test) for split in splits] == [30, 10]
    assert [len(split.validation) for split in splits] == [15, 5]


def test_a_recording_with_too_few_episodes_is_named():
    episodes = named([np.repeat(np.arange(9), 10), np.zeros(90, int)])
    with pytest.raises(ValueError, match=r"recording 1 must have whole episodes for 10 test"):
        split_all(episodes, num_test=20, num_validation=10)


def named(episodes):
    return {f"recording {number}": one for number, one in enumerate(episodes)}
