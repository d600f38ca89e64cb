"""Rows of a batch that become queries: what moves, what the answers are, what stays."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import (
    BatchTeacher,
    Linear,
    NetworkTeacher,
    Query,
    Recombine,
    with_queries,
)


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


# What stays as it is, and what is refused


def test_a_number_that_is_missing_before_and_after_moves_no_row():
    x = states()
    x[::2, 0] = torch.nan
    y = torch.zeros(40, 2, dtype=torch.float64)
    points = Recombine(1.0)
    asked_for = []

    def known(at):
        asked_for.append(at)
        return answer(at.nan_to_num())

    made, targets = with_queries(x, y, known, points, torch.Generator().manual_seed(0))
    stays = torch.tensor(
        [
            all(a == b or (a != a and b != b) for a, b in zip(row, other, strict=True))
            for row, other in zip(x.tolist(), made.tolist(), strict=True)
        ]
    )
    assert 0 < int(stays.sum()) < 40
    assert torch.equal(targets[stays], y[stays])
    assert_close(targets[~stays], answer(made[~stays].nan_to_num()), rtol=0, atol=0)
    assert len(asked_for[0]) == int((~stays).sum())


def in_place(x, generator):
    del generator
    x[:10] += 1.0
    return x


def in_place_and_seen_from_behind(x, generator):
    return in_place(x, generator).flip(1)[:, [2, 1, 0]]


class InPlace:
    def at(self, x, generator, step):
        del step
        return in_place(x, generator)


@pytest.mark.parametrize("points", [in_place, in_place_and_seen_from_behind, InPlace()])
def test_points_that_are_written_into_their_input_leave_the_batch_alone(points):
    x = states()
    before, y = x.clone(), answer(x)
    made, targets = asked(x, y, points)
    assert torch.equal(x, before)
    assert torch.equal(made[:10], before[:10] + 1.0)
    assert_close(targets, answer(made), rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_without_partners_stays(count):
    x = states(count)
    made, targets = asked(x, answer(x), Recombine(1.0))
    assert (made is x, len(targets)) == (True, count)


SHAPES = {"number": (), "vector": (5,), "signal": (2, 9), "picture": (3, 8, 6)}
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.int64)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", [(), (3,)])
def test_inputs_and_targets_of_any_kind(shape, dtype, targets):
    generator = torch.Generator().manual_seed(1)
    x = (100 * torch.rand(12, *SHAPES[shape], generator=generator)).to(dtype)

    def total(x):
        found = x.double().reshape(len(x), -1).sum(1)
        return found.reshape(-1, *[1] * len(targets)).expand(len(x), *targets)

    y = torch.full((12, *targets), -1.0)
    made, found = with_queries(x, y, total, Recombine(1.0), generator)
    moved = (made != x).reshape(12, -1).any(1)
    assert int(moved.sum()) >= 3
    assert (made.dtype, found.dtype) == (dtype, torch.float32)
    assert_close(found[moved], total(made[moved]).float())
    assert bool((found[~moved] == -1.0).all())


def test_labels_may_be_whole_numbers():
    x = states()
    labels = torch.full((40,), 7)
    made, found = with_queries(
        x, labels, lambda x: answer(x).argmax(1), Recombine(1.0), torch.Generator()
    )
    moved = (made != x).any(1)
    assert found.dtype == torch.int64
    assert torch.equal(found[moved], answer(made[moved]).argmax(1))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (lambda x: answer(x)[:, 0], r"\[\d+\] of a type that torch.int64 holds, got .*float64"),
        (answer, r"\[\d+\] of a type that torch.int64 holds, got '\[\d+, 2\] torch.float64'"),
        (lambda x: (x.argmax(1),), r"answer must be one that returns .*, got 'tuple'"),
    ],
)
def test_labels_are_not_cut_off_from_probabilities(wrong, text):
    x = states()
    with pytest.raises(ValueError, match=text):
        with_queries(x, torch.zeros(40).long(), wrong, Recombine(1.0), torch.Generator())


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        ({"x": states()}, states(), r"x must be a tensor \[batch, ...\], got 'dict'"),
        (states(), [1.0], r"y must be a tensor \[batch, ...\], got 'list'"),
        (states(), states(39), r"y must be a tensor of 40 rows as x is, got \[39, 3\]"),
        (states().requires_grad_() * 2, states(), "x must be the data's own inputs, without a gr"),
    ],
)
def test_what_is_no_batch_is_refused(x, y, text):
    with pytest.raises(ValueError, match=text):
        asked(x, y, Recombine(1.0))


def test_an_input_that_is_to_be_differentiated_still_is():
    x = states().requires_grad_()
    made, _ = asked(x, answer(x.detach()), Recombine(0.5))
    assert (made.is_leaf, made.requires_grad) == (True, True)
    assert x.grad is None


# Who answers


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(x))[:, :2]


def test_a_network_in_train_mode_answers_in_eval_mode_and_is_left_as_it_was():
    network = Remembers().double()
    network.drop.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = states()
    made, found = with_queries(x, answer(x), network, Recombine(1.0), torch.Generator())
    moved = (made != x).any(1)
    assert (network.training, network.norm.training, network.drop.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    # running mean 0 and variance 1
    assert_close(found[moved], made[moved][:, :2] / (1 + 1e-5) ** 0.5)


def test_a_network_that_fails_is_left_as_it_was():
    network = nn.Sequential(nn.Linear(7, 2))
    with pytest.raises(RuntimeError):
        with_queries(states(), states(), network, Recombine(1.0), torch.Generator())
    assert network[0].training


def test_a_teacher_is_asked_and_one_that_knows_the_data_alone_is_refused():
    network = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    teacher, x = NetworkTeacher(network, answer=lambda y: 3 * y), states()
    made, found = with_queries(x, answer(x), teacher, Recombine(1.0), torch.Generator())
    moved = (made != x).any(1)
    assert_close(found[moved], 3 * network(made[moved]).detach())
    with pytest.raises(ValueError, match="answer must be a teacher that answers at any points, go"):
        with_queries(x, answer(x), BatchTeacher("dydx"), Recombine(1.0), torch.Generator())


def test_answers_are_as_exact_as_they_are_outside_of_autocast():
    network = nn.Linear(3, 2)
    x = states().float()
    with torch.autocast("cpu", torch.bfloat16):
        made, found = with_queries(x, x[:, :2], network, Recombine(1.0), torch.Generator())
    moved = (made != x).any(1)
    expected = made[moved].double() @ network.weight.double().T + network.bias.double()
    assert_close(found[moved].double(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_an_energy_whose_slope_is_the_answer_can_be_asked():
    def force(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(x.sin().sum(), x)[0]

    x = states()
    made, found = with_queries(x, -x.cos(), force, Recombine(0.5), torch.Generator())
    assert_close(found, -made.cos())
    assert not found.requires_grad
