"""What a weight means, and gradients of the whole loss, against dense references."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import Directions, SobolevTerm
from lightning_sobolev.functional import tape_jet
from lightning_sobolev.loss.compare import evaluate
from lightning_sobolev.loss.draws import Draws
from lightning_sobolev.loss.reduce import RunningScales, reduce, weighted_sum
from tests._laws import assert_unbiased
from tests._reference import dense_hessian, dense_jacobian, parameter_gradients_by_differences

DIM, OUTPUTS, BATCH = 4, 4, 6


def net(seed, width=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(DIM, width), nn.Tanh(), nn.Linear(width, OUTPUTS)
        ).double()  # fmt: skip


@pytest.fixture
def x(generator):
    return torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)


def term_value(term, student, teacher, x, draws, scales=None, index=0):
    ours, theirs = tape_jet(student, x, create_graph=True), tape_jet(teacher, x)
    cotangents = draws.cotangents(index, term, ours.value) if term.needs_cotangents else None
    tangents = draws.tangents(index, term, x) if term.needs_tangents else None
    compared = evaluate(term, ours, theirs, Directions(cotangents, tangents))
    return reduce(term, compared, RunningScales() if scales is None else scales)[0]


def dense_value(term, student, teacher, x):
    """The same by full Jacobians or Hessians: mean over rows of squared Frobenius norms."""
    dense = dense_hessian if term.order == 2 else dense_jacobian
    ours, theirs = dense(student, x), dense(teacher, x)
    distance = (ours - theirs).square().flatten(1).sum(1).mean()
    return distance / theirs.square().flatten(1).sum(1).mean()


LAWS = ["sphere", "gaussian", "rademacher", "basis"]
SIDES = [{"order": 1}, {"order": 1, "side": "tangent"}, {"order": 2}]


@pytest.mark.parametrize("options", SIDES, ids=["cotangent", "tangent", "order 2"])
def test_every_direction_gives_the_dense_value(options, x):
    term = SobolevTerm(projection="basis", num_projections=None, **options)
    student, teacher = net(1), net(2)
    exact = term_value(term, student, teacher, x, Draws(0, 0, 0))
    assert_close(exact, dense_value(term, student, teacher, x))


@pytest.mark.parametrize(("law", "count"), list(zip(LAWS, (1, 4, 1, 4), strict=True)))
@pytest.mark.parametrize("options", SIDES, ids=["cotangent", "tangent", "order 2"])
def test_a_weight_means_the_same_for_every_law_and_number_of_projections(options, law, count, x):
    term = SobolevTerm(projection=law, num_projections=count, normalize="none", **options)
    student, teacher = net(1), net(2)
    samples = [term_value(term, student, teacher, x, Draws(0, 0, n)) for n in range(300)]
    dense = dense_hessian if term.order == 2 else dense_jacobian
    expected = (dense(student, x) - dense(teacher, x)).square().flatten(1).sum(1).mean()
    assert_unbiased(torch.stack(samples).detach(), expected.detach())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_weight_means_the_same_for_every_batch_size(size, x):
    term = SobolevTerm(projection="basis", num_projections=None, normalize="none")
    student, teacher = net(1), net(2)
    whole = term_value(term, student, teacher, x, Draws(0, 0, 0))
    parts = [term_value(term, student, teacher, b, Draws(0, 0, 0)) for b in x.split(size)]
    assert_close(torch.stack(parts).mean(), whole)


@pytest.mark.parametrize("options", SIDES, ids=["cotangent", "tangent", "order 2"])
def test_a_student_without_derivative_scores_one(options, x):
    student = net(1)
    nn.init.zeros_(student[-1].weight)
    for law in LAWS:
        term = SobolevTerm(projection=law, **options)
        total = term_value(term, student, net(2), x, Draws(0, 0, 0))
        assert_close(total.detach(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("options", SIDES, ids=["cotangent", "tangent", "order 2"])
def test_a_teacher_without_the_axis_of_one_teaches_all_the_same(options, x):
    term = SobolevTerm(**options)
    student = lambda p: net(1)(p)[:, :1]  # noqa: E731
    with_axis = term_value(term, student, lambda p: net(2)(p)[:, :1], x, Draws(0, 0, 0))
    without = term_value(term, student, lambda p: net(2)(p)[:, 0], x, Draws(0, 0, 0))
    assert_close(without, with_axis)


def whole_loss(student, teacher, x):
    terms = [
        SobolevTerm(order=0),
        SobolevTerm(num_projections=2, discrepancy="huber"),
        SobolevTerm(side="tangent", name="tangent", projection="gaussian", discrepancy="cosine"),
        SobolevTerm(order=2, projection="rademacher", normalize="none"),
    ]
    scales = RunningScales()
    values = {
        term.key: term_value(term, student, teacher, x, Draws(0, 0, 0), scales, index)
        for index, term in enumerate(terms)
    }
    weights = dict(zip(values, (1.0, 0.3, 0.2, 0.1), strict=True))
    return weighted_sum(values, weights)


def test_gradient_of_the_whole_loss_agrees_with_finite_differences(x):
    student, teacher = net(1), net(2)
    found = torch.autograd.grad(whole_loss(student, teacher, x), list(student.parameters()))
    expected = parameter_gradients_by_differences(
        lambda: whole_loss(student, teacher, x), student, step=1e-6
    )
    for gradient, reference in zip(found, expected, strict=True):
        assert_close(gradient, reference, rtol=1e-6, atol=1e-8)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(x):
    student, teacher = net(1), net(1)
    loss = whole_loss(student, teacher, x)
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-14)
    for gradient in gradients:
        # the angle of two equal vectors is known to the root of rounding error only
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
