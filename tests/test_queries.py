"""Rows of a batch that become queries: what moves, what the answers are, what stays."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import Linear, NetworkTeacher, Query, Recombine, with_queries


def states(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64)


def answer(x):
    return torch.stack([x.sin().sum(1), x.prod(1)], 1)


def asked(x, y, points, seed=0, step=0):
    return with_queries(x, y, answer, points, torch.Generator().manual_seed(seed), step)


def test_moved_rows_have_the_answer_there_and_all_others_keep_theirs():
    x = states()
    y = answer(x) + 100.0  # no teacher gives these
    made, targets = asked(x, y, Recombine(0.5))
    moved = (made != x).any(1)
    # a row may take every element from itself
    assert 10 <= int(moved.sum()) <= 20
    assert_close(targets[moved], answer(made[moved]), rtol=0, atol=0)
    assert torch.equal(targets[~moved], y[~moved])
    assert_close(y, answer(x) + 100.0)


def test_nothing_is_asked_where_no_row_moves():
    x = states()

    def refuses(_):
        raise AssertionError("asked")

    generator = torch.Generator().manual_seed(0)
    made, targets = with_queries(x, x, refuses, lambda x, _: x.clone(), generator)
    assert made is x
    assert targets is x


def test_the_share_follows_its_schedule_and_the_generator_decides_all():
    x, points = states(), Recombine(Linear(1.0, 0.0, steps=10))
    counts = [int((asked(x, answer(x), points, step=s)[0] != x).any(1).sum()) for s in (0, 5, 10)]
    assert counts[0] > counts[1] > counts[2] == 0
    one, same, other = (asked(x, answer(x), points, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_bytes_stay_bytes_and_a_network_answers_without_a_graph():
    x = (255 * states()).to(torch.uint8)
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    teacher = NetworkTeacher(network)

    def network_answer(x):
        return teacher.at(Query(x.float() / 255)).value

    y = torch.zeros(40, 2, dtype=torch.float64)
    made, targets = with_queries(x, y, network_answer, Recombine(1.0), torch.Generator())
    moved = (made != x).any(1)
    assert made.dtype == torch.uint8
    assert (targets.dtype, targets.requires_grad) == (torch.float64, False)
    with torch.no_grad():
        assert_close(targets[moved], network(made[moved].float() / 255).double())


@pytest.mark.parametrize("wrong", [lambda x: x[:, 0], lambda x: x[:1, :2]])
def test_answers_of_another_shape_are_refused(wrong):
    x = states()
    with pytest.raises(ValueError, match=r"answer must be one that returns \[\d+, 2\]"):
        with_queries(x, answer(x), wrong, Recombine(1.0), torch.Generator())
