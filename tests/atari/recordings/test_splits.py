from itertools import pairwise

import numpy as np
import pytest

from lightning_sobolev.atari.recordings.dataset import (
    SplitSizes,
    choose_fraction,
    split_all,
    split_by_episode,
)


def random_shards(seed, count=12, games=5, mean_length=30):
    rng = np.random.default_rng(seed)
    return rng.geometric(1 / mean_length, (count, games)).tolist()


def episodes_of(lengths):
    return np.repeat(np.arange(np.size(lengths)), np.ravel(lengths))


SIZES = SplitSizes(train=700, validation=40, test=130)


@pytest.mark.parametrize("seed", range(8))
def test_no_episode_is_in_two_parts_and_sizes_are_exact(seed):
    shards = random_shards(seed)
    split = split_by_episode(shards, SIZES)
    parts = [set(episodes_of(shards)[rows]) for rows in split]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert (len(split.validation), len(split.test)) == (40, 130)
    assert len(split.train) >= 700
    assert all(len(np.unique(rows)) == len(rows) for rows in split)


@pytest.mark.parametrize("seed", range(4))
def test_a_longer_recording_gives_the_same_split(seed):
    shards = random_shards(seed)
    enough = next(n for n in range(13) if split_by_episode(shards[:n], SIZES) is not None)
    assert 0 < enough < 12
    for one, other in zip(
        split_by_episode(shards, SIZES), split_by_episode(shards[:enough], SIZES), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("train", [None, 10, 1000])
def test_the_test_states_are_the_same_however_many_train(train):
    shards = random_shards(0)
    split = split_by_episode(shards, SplitSizes(train=train, validation=40, test=130))
    for one, other in zip(split[1:], split_by_episode(shards, SIZES)[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_episodes_are_dealt_in_their_order():
    split = split_by_episode([[50] * 10], SplitSizes(train=100, validation=10, test=60))
    episodes = episodes_of([50] * 10)
    assert set(episodes[split.test]) == {0, 1}
    assert set(episodes[split.validation]) == {2}
    assert set(episodes[split.train]) == set(range(3, 10))
    assert {split.test[0], split.test[-1]} == {0, 99}  # spread over all of its episodes


def test_fractions_are_nested_and_random():
    parts = [choose_fraction(1000, 900, part, 0) for part in (1 / 64, 1 / 16, 1 / 8, 1)]
    assert [len(part) for part in parts] == [14, 56, 112, 900]
    for small, large in pairwise(parts):
        assert set(small) < set(large)
    other = choose_fraction(1000, 900, 1 / 8, 1)
    assert set(other) != set(parts[2])


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=rf"fraction must be in \(0, 1\], got {fraction}"):
        choose_fraction(10, 10, fraction, 0)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("count", [0, 1.5, True])
def test_wrong_sizes_are_refused(name, count):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of states >= 1, got"):
        SplitSizes(**{"train": 1, "validation": 1, "test": 1, name: count})


@pytest.mark.parametrize("counts", [(60, 20), (61, 1), (1, 7)])
def test_several_recordings_are_split_each_by_its_episodes(counts):
    recordings = {
        "long": np.ravel(random_shards(0)),
        "short": np.ravel(random_shards(1, count=3)),
        "even": np.full(4, 25),
    }
    splits = split_all(recordings, SplitSizes(test=counts[0], validation=counts[1]))
    for lengths, split in zip(recordings.values(), splits, strict=True):
        parts = [set(episodes_of(lengths)[rows]) for rows in split]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(split.train) > 0
    assert sum(len(split.test) for split in splits) == counts[0]
    assert sum(len(split.validation) for split in splits) == counts[1]


def test_a_recording_with_too_few_episodes_is_named():
    with pytest.raises(ValueError, match="other must have whole episodes for 10 test"):
        split_all({"one": [10] * 9, "other": [90]}, SplitSizes(test=20, validation=10))
