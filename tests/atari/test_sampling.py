from itertools import chain

import numpy as np
import pytest
from torch.utils.data import Dataset

from lightning_sobolev.atari import EvenSampler, StepLoader, StepSampler


class Identity(Dataset):
    def __getitem__(self, positions):
        return positions


def stream(sampler, epochs):
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from sampler


def test_every_batch_is_full_and_every_pass_takes_each_state_once():
    sampler = StepSampler(10, batch_size=4, steps=5, seed=3)
    batches = list(stream(sampler, epochs=3))
    assert [len(batch) for batch in batches] == [4] * 15
    for positions in np.concatenate(batches).reshape(6, 10):
        assert sorted(positions) == list(range(10))


def test_an_epoch_has_the_same_number_of_steps_whatever_the_number_of_states():
    for num_items in (32, 625, 40_000):
        sampler = StepSampler(num_items, batch_size=32, steps=7, seed=0)
        assert len(sampler) == len(list(sampler)) == 7
    assert len(StepSampler(100, batch_size=32, steps=None, seed=0)) == 3


def test_order_comes_from_the_seed():
    first, again, other = (
        np.concatenate(list(stream(StepSampler(50, batch_size=5, steps=20, seed=seed), 2)))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:50], first[50:100])


def test_processes_share_one_stream():
    alone = list(stream(StepSampler(24, batch_size=6, steps=8, seed=0), 2))
    pair = [
        list(stream(StepSampler(24, batch_size=3, steps=8, seed=0, rank=r, world_size=2), 2))
        for r in range(2)
    ]
    together = [np.concatenate(batches) for batches in zip(*pair, strict=True)]
    np.testing.assert_array_equal(alone, together)


def test_loader_goes_on_in_the_middle_of_an_epoch():
    def loader():
        return StepLoader(Identity(), StepSampler(20, batch_size=4, steps=6, seed=0))

    straight = loader()
    straight.sampler.set_epoch(2)
    expected = [batch.tolist() for batch in straight]
    interrupted, resumed = loader(), loader()
    interrupted.sampler.set_epoch(2)
    given = [batch.tolist() for _, batch in zip(range(2), interrupted, strict=False)]
    resumed.sampler.set_epoch(2)
    resumed.load_state_dict(interrupted.state_dict())
    assert given + [batch.tolist() for batch in resumed] == expected
    assert [batch.tolist() for batch in resumed] == expected
    assert resumed.state_dict() == {"given": 6}


def test_loader_begins_anew_after_a_whole_epoch():
    loader = StepLoader(Identity(), StepSampler(20, batch_size=4, steps=3, seed=0))
    loader.load_state_dict({"given": 3})
    assert len(list(loader)) == 3


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_items", [7, 12, 100])
def test_evaluation_takes_each_state_once_in_equally_many_batches(num_items, world_size):
    samplers = [
        EvenSampler(num_items, batch_size=4, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(one) for one in batches} == {len(samplers[0])}
    assert max(len(batch) for batch in chain(*batches)) <= 4
    assert sorted(np.concatenate(list(chain(*batches)))) == list(range(num_items))


@pytest.mark.parametrize(("batch_size", "world_size"), [(11, 1), (6, 2), (0, 1)])
def test_fewer_states_than_a_batch_are_refused(batch_size, world_size):
    with pytest.raises(ValueError, match=rf"batch_size must be in 1\.\..*got {batch_size}"):
        StepSampler(10, batch_size=batch_size, steps=5, seed=0, world_size=world_size)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        StepSampler(10, batch_size=2, steps=0, seed=0)
