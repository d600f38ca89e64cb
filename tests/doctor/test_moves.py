"""What a teacher's derivatives say of moves, against closed forms in float64."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, NetworkTeacher
from lightning_sobolev.doctor.moves import NothingToExplain, explained


def cloud(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Of(nn.Module):
    """A function as a module, with whatever a test needs to see restored."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.calls += 1
        return self.fn(x)


def mlp(*sizes, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [[nn.Linear(a, b), nn.Tanh()] for a, b in pairwise(sizes)]
        return nn.Sequential(*[part for layer in layers for part in layer][:-1]).to(dtype)


def test_derivatives_of_an_affine_teacher_say_all():
    found = explained(nn.Linear(12, 3).double(), cloud(9, 12), cloud(9, 12, seed=1))
    assert_close([found.first_order, found.both_ends], [1.0, 1.0], rtol=0, atol=1e-12)


def test_both_ends_say_all_of_a_quadratic_one():
    matrix, x, moved = cloud(5, 5, seed=2), cloud(40, 5), cloud(40, 5, seed=1)
    found = explained(Of(lambda x: ((x @ matrix) * x).sum(1)), x, moved)
    assert_close(found.both_ends, 1.0, rtol=0, atol=1e-12)
    dx = moved - x
    change = ((moved @ matrix) * moved).sum(1) - ((x @ matrix) * x).sum(1)
    missed = ((dx @ matrix) * dx).sum(1)  # f(x + dx) = f(x) + J dx + dx' A dx
    expected = 1 - missed.square().sum() / change.square().sum()
    assert_close(found.first_order, float(expected))


def test_derivatives_of_steps_say_nothing():
    x = torch.tensor([[0.25], [1.5], [3.75]], dtype=torch.float64)
    found = explained(Of(torch.floor), x, x + 2.0)
    assert (found.first_order, found.both_ends, found.error) == (0.0, 0.0, 0.0)


def test_ripples_are_worse_than_no_change():
    # From 0 by nearly a period: df = sin(c) is small, J dx = c is not.
    x = torch.zeros(3, 1, dtype=torch.float64)
    found = explained(Of(torch.sin), x, x + 6.0)
    rest = (math.sin(6.0) - 6.0) ** 2
    assert_close(found.first_order, 1 - rest / math.sin(6.0) ** 2)


def test_scores_and_error_are_those_of_full_jacobians(monkeypatch):
    teacher, x, moved = mlp(6, 8, 3), cloud(20, 2, 3), cloud(20, 2, 3, seed=1)
    monkeypatch.setattr("lightning_sobolev.doctor.moves._CHUNK", 40)  # six rows, and two at last
    net = nn.Sequential(nn.Flatten(), teacher).requires_grad_(False)
    found = explained(net, x, moved, on=torch.square)

    def square(row):
        return net(row[None])[0].square()

    change = vmap(square)(moved) - vmap(square)(x)
    here, there = (
        torch.einsum("boij,bij->bo", vmap(jacrev(square))(at), moved - x) for at in (x, moved)
    )
    total = change.square().sum()
    for said, score in ((here, found.first_order), ((here + there) / 2, found.both_ends)):
        assert_close(score, float(1 - (change - said).square().sum() / total))
    rest = (change - here).square().sum(1)
    apart = rest - (1 - found.first_order) * change.square().sum(1)
    assert_close(found.error, float(apart.std() * math.sqrt(20) / total))


def test_rows_that_stay_are_left_out():
    x, moved = cloud(10, 4), cloud(10, 4, seed=1)
    stay = torch.arange(10) % 3 == 0
    found = explained(mlp(4, 5, 2), x, torch.where(stay[:, None], x, moved))
    assert found == explained(mlp(4, 5, 2), x[~stay], moved[~stay])


def test_sums_of_a_float32_teacher_are_in_float64():
    x = cloud(40, 3).float()
    found = explained(Of(lambda x: 1e25 * x), x, x + 1)  # whose squares are beyond float32
    assert_close([found.first_order, found.both_ends], [1.0, 1.0])
    moved = x + 0.01 * cloud(40, 3, seed=1).float()
    single = explained(mlp(3, 16, 2, dtype=torch.float32), x, moved)
    exact = explained(mlp(3, 16, 2), x.double(), moved.double())
    assert_close(single.first_order, exact.first_order, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_teacher_is_left_as_it_was(mode):
    teacher = Of(lambda x: x * torch.rand(()).double())
    state = torch.get_rng_state()
    with mode():
        explained(teacher, cloud(4, 2), cloud(4, 2, seed=1))
    assert teacher.training
    assert teacher.weight.requires_grad
    assert float(teacher.calls) == 0.0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_that_fails_is_left_as_it_was():
    teacher = Of(lambda x: x * math.nan)
    with pytest.raises(ValueError, match=r"teacher must be finite in value and derivative"):
        explained(teacher, cloud(4, 2), cloud(4, 2, seed=1))
    assert teacher.training
    assert teacher.weight.requires_grad


def test_fused_attention_is_asked_for_products():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    x, moved = cloud(3, 5, 4), cloud(3, 5, 4, seed=1)
    near = explained(layer, x, x + 1e-4 * moved)
    assert near.first_order > 1 - 1e-4
    assert near.both_ends > 1 - 1e-7


def test_where_nothing_changes_nothing_is_said():
    x = cloud(4, 2)
    with pytest.raises(NothingToExplain, match="moved must differ from x in one row"):
        explained(mlp(2, 1), x, x.clone())
    with pytest.raises(NothingToExplain, match="got the same over all of 4 moves"):
        explained(Of(lambda x: 0 * x), x, x + 1)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"x": torch.ones(3, 2, dtype=torch.int64)}, "x must be floating-point numbers"),
        ({"x": cloud(4)}, r"x must be floating-point numbers \[batch, \*in\]"),
        ({"x": cloud(0, 2)}, r"got 'torch.float64 \[0, 2\]'"),
        ({"moved": cloud(4, 3)}, r"moved must be torch.float64 \[4, 2\] as x is, got '.*\[4, 3\]"),
        ({"moved": cloud(4, 2).float()}, "moved must be .* got .*float32"),
        ({"moved": torch.full((4, 2), math.inf).double()}, "moved must be finite"),
        ({"teacher": 3}, "teacher must be a Teacher or a module, got int"),
        ({"teacher": BatchTeacher(jacobian="j")}, "teacher must be one that answers at any points"),
        ({"teacher": Of(lambda x: x.sum())}, r"teacher must be one that answers \[4, \*out\]"),
    ],
)
def test_bad_input_is_named(given, text):
    whole = {"teacher": mlp(2, 1), "x": cloud(4, 2), "moved": cloud(4, 2, seed=1)} | given
    with pytest.raises(ValueError, match=text):
        explained(**whole)


def test_a_teacher_of_its_own_is_asked_as_it_is():
    net, x, moved = mlp(2, 3, 1), cloud(5, 2), cloud(5, 2, seed=1)
    assert explained(NetworkTeacher(net), x, moved) == explained(net, x, moved)


def test_output_maps_have_names():
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(3, 4).double()
    by_hand = explained(net, x, x + 0.3, on=lambda y: torch.log_softmax(y, -1))
    assert explained(net, x, x + 0.3, on="log_softmax") == by_hand
    with pytest.raises(ValueError, match="on must be one of"):
        explained(net, x, x + 0.3, on="logits")
