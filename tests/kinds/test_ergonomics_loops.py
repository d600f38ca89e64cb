"""Loops that people write: several backwards, closures, Fabric, gradient surgery, checkpoints."""

import copy

import pytest
import torch
from lightning.fabric import Fabric
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher, SobolevLoss, SobolevTerm
from tests.kinds._by_hand import (
    EXACT,
    RANDOM,
    SIDES,
    Overheard,
    X,
    Y,
    along,
    assert_all_differ,
    assert_is,
    frobenius,
    mlp,
    numbers,
    slope,
    target,
)

TERM = SobolevTerm(**EXACT, weight=0.1)


def loss_of(*terms, **options):
    return SobolevLoss(AnalyticTeacher(target), terms or (TERM,), **options)


def flat(tensors):
    return parameters_to_vector(tensors).detach().clone()


def gradient(net):
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return flat(parts)


def dense(net, x, y):
    return mse_loss(net(x), y) + 0.1 * frobenius(net, target, x)


@pytest.mark.parametrize("side", SIDES)
def test_gradients_are_accumulated_by_hand(side):
    net, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, weight=0.1, side=side))
    chunks = [(X, Y), (numbers(4, 3, seed=8), numbers(4, 2, seed=9))]
    for x, y in chunks:
        with loss_fn.observe(net):
            value = mse_loss(net(x), y)
        ((value + loss_fn()) / len(chunks)).backward()
    assert_is(gradient(net), slope(sum(dense(net, x, y) for x, y in chunks) / 2, net))


def test_parts_that_are_accumulated_have_random_directions_of_their_own():
    teacher, net = Overheard(), mlp()
    loss_fn = SobolevLoss(teacher, SobolevTerm(**RANDOM))
    parts = X.chunk(3)
    for x in parts:
        with loss_fn.observe(net):
            net(x)
        loss_fn().loss.backward()
    assert_all_differ(teacher.along)
    terms = [along(u, "cotangent", net, x) for u, x in zip(teacher.along, parts, strict=True)]
    assert_is(gradient(net), slope(sum(terms), net))


def test_a_term_may_be_added_to_a_loss_that_is_gone():
    """The value has its backward pass first, with its graph kept."""
    net, loss_fn = mlp(), loss_of()
    with loss_fn.observe(net):
        value = mse_loss(net(X), Y)
    value.backward(retain_graph=True)
    loss_fn().loss.backward()
    assert_is(gradient(net), slope(dense(net, X, Y), net))


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def test_a_closure_may_be_called_as_often_as_it_pleases():
    options = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}
    ours, theirs, loss_fn = mlp(), mlp(), loss_of()

    def observed():
        with loss_fn.observe(ours):
            value = mse_loss(ours(X), Y)
        return value + loss_fn()

    for net, loss in ((ours, observed), (theirs, lambda: dense(theirs, X, Y))):
        optimizer = torch.optim.LBFGS(net.parameters(), **options)
        for _ in range(2):
            optimizer.step(closure_of(optimizer, loss))
    assert_close(flat(ours.parameters()), flat(theirs.parameters()), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("side", SIDES)
def test_fabric_trains_by_the_same_lines(side):
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    plain, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, weight=0.1, side=side))
    net, optimizer = fabric.setup(plain, torch.optim.SGD(plain.parameters(), lr=1.0))
    before, expected = flat(mlp().parameters()), mlp()

    with loss_fn.observe(net):
        value = mse_loss(net(X), Y)
    fabric.backward(value + loss_fn())
    optimizer.step()

    # Fabric gives outputs in torch's default type, float32.
    assert_is(before - flat(plain.parameters()), slope(dense(expected, X, Y), expected), 1e-6)


def random_terms():
    return (
        SobolevTerm(weight=0.1, projection="sphere", normalize="target"),
        SobolevTerm(weight=0.1, side="tangent", projection="gaussian", name="tangent"),
    )


def train(net, loss_fn, steps):
    for number in steps:
        x, y = numbers(6, 3, seed=number), numbers(6, 2, seed=number + 50)
        with loss_fn.observe(net):
            value = mse_loss(net(x), y)
        loss = value + loss_fn()
        found = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), found, strict=True):
                p.sub_(g, alpha=0.1)


def test_a_loss_goes_on_from_its_state(tmp_path):
    net, whole = mlp(), loss_of(*random_terms(), seed=3)
    train(net, whole, range(3))
    torch.save({"net": copy.deepcopy(net.state_dict()), "loss": whole.state_dict()},
               tmp_path / "last.pt")  # fmt: skip
    train(net, whole, range(3, 6))
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    again, resumed = mlp(), loss_of(*random_terms(), seed=3)
    again.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["loss"])
    train(again, resumed, range(3, 6))
    assert_close(flat(again.parameters()), flat(net.parameters()), rtol=0, atol=0)
    fresh, anew = mlp(), loss_of(*random_terms(), seed=3)
    fresh.load_state_dict(saved["net"])
    train(fresh, anew, range(3, 6))
    assert (flat(fresh.parameters()) - flat(net.parameters())).norm() > 1e-6


def test_running_scales_are_means_of_all_steps():
    net, loss_fn = mlp(), loss_of(SobolevTerm(**{**EXACT, "normalize": "target"}))
    sizes = []
    for x in (X, 2.0 * X, numbers(4, 3, seed=8)):
        with loss_fn.observe(net):
            net(x)
        sizes.append(frobenius(lambda row: 0.0 * target(row), target, x))
        expected = frobenius(net, target, x) / torch.stack(sizes).mean()
        assert_is(slope(loss_fn().loss, net), slope(expected, net))


def test_two_losses_may_observe_one_network():
    net, one = mlp(), loss_of()
    other = SobolevLoss(mlp(seed=7), SobolevTerm(**EXACT, side="tangent"))
    with one.observe(net), other.observe(net):
        net(X)
    found = one().loss + other().loss
    expected = 0.1 * frobenius(net, target, X) + frobenius(net, mlp(seed=7), X)
    assert_is(slope(found, net), slope(expected, net))
