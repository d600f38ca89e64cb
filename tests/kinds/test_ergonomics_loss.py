"""The loss in plain PyTorch: three lines, and nothing left behind."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from lightning_sobolev import (
    AnalyticTeacher,
    BatchTeacher,
    DirectionalTeacher,
    Linear,
    SobolevLoss,
    SobolevSpec,
    SobolevTerm,
)
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
    distance,
    frobenius,
    jacobian,
    mlp,
    numbers,
    slope,
    target,
)


def loss_of(*terms, teacher=None, **options):
    terms = terms or (SobolevTerm(**EXACT),)
    return SobolevLoss(AnalyticTeacher(target) if teacher is None else teacher, terms, **options)


def gradient(net):
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return parameters_to_vector(parts)


@pytest.mark.parametrize("side", SIDES)
def test_three_lines_are_enough(side):
    net, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, side=side, weight=0.5))

    with loss_fn.observe(net):
        value = mse_loss(net(X), Y)
    (value + loss_fn()).backward()

    assert_is(gradient(net), slope(mse_loss(net(X), Y) + 0.5 * frobenius(net, target, X), net))


@pytest.mark.parametrize("side", SIDES)
def test_each_evaluation_has_random_directions_of_its_own(side):
    teacher, net = Overheard(), mlp()
    loss_fn = SobolevLoss(teacher, SobolevTerm(**RANDOM, side=side))
    for number in range(4):
        with loss_fn.observe(net):
            net(X)
        found = slope(loss_fn().loss, net)
        assert len(teacher.along) == number + 1
        assert_is(found, slope(along(teacher.along[-1], side, net, X), net))
    assert_all_differ(teacher.along)


def pieces():
    term = SobolevTerm(**EXACT)
    return {"a term": term, "a list": [term], "a spec": SobolevSpec(terms=[term])}


@pytest.mark.parametrize("form", ["a term", "a list", "a spec"])
def test_terms_come_in_every_form(form):
    net, loss_fn = mlp(), SobolevLoss(AnalyticTeacher(target), pieces()[form])
    with loss_fn.observe(net):
        net(X)
    assert_is(slope(loss_fn().loss, net), slope(frobenius(net, target, X), net))


def test_a_network_is_a_teacher_and_the_default_term_is_relative():
    net, loss_fn = mlp(outputs=1), SobolevLoss(mlp(outputs=1, seed=7))
    with loss_fn.observe(net):
        net(X)
    theirs = jacobian(mlp(outputs=1, seed=7), X).detach()
    expected = distance(jacobian(net, X), theirs) / theirs.square().flatten(1).sum(1).mean()
    assert_is(slope(loss_fn().loss, net), slope(expected, net))


def test_an_output_map_is_of_both():
    net, loss_fn = mlp(), loss_of(on="softmax")
    with loss_fn.observe(net):
        net(X)
    ours, theirs = (lambda x: net(x).softmax(-1)), (lambda x: target(x).softmax(-1))
    assert_is(slope(loss_fn().loss, net), slope(frobenius(ours, theirs, X), net))


def test_a_report_adds_up_from_both_sides():
    net, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, weight=0.5))
    with loss_fn.observe(net):
        value = mse_loss(net(X), Y)
    report = loss_fn()
    expected = value + 0.5 * frobenius(net, target, X)
    for found in (value + report, report + value, value + report.loss):
        assert torch.is_tensor(found)
        assert_close(found, expected, rtol=1e-10, atol=0)
    assert_close(report.terms["order_1"], frobenius(net, target, X), rtol=1e-10, atol=0)
    assert report.weights == {"order_1": 0.5}


def test_the_step_chooses_the_weight():
    net, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, weight=Linear(start=0.0, end=1.0, steps=4)))
    with loss_fn.observe(net):
        net(X)
    assert_is(slope(loss_fn(step=2).loss, net), slope(0.5 * frobenius(net, target, X), net))


def test_the_batch_is_what_a_stored_teacher_reads():
    stored, net = numbers(6, 2, 3, seed=2), mlp()
    loss_fn = loss_of(teacher=BatchTeacher("slopes"))
    with loss_fn.observe(net):
        net(X)
    found = slope(loss_fn(batch={"x": X, "slopes": stored}).loss, net)
    assert_is(found, slope(distance(jacobian(net, X), stored), net))


def test_directions_of_the_batch_are_the_terms_own():
    v, pushed, net = numbers(6, 3, seed=4), numbers(6, 2, seed=5), mlp()
    term = SobolevTerm(side="tangent", normalize="none")
    loss_fn = loss_of(term, teacher=DirectionalTeacher(1, 2))
    batch = (X, v, pushed)
    with loss_fn.observe(net):
        net(X)
    errors = torch.einsum("bcd,bd->bc", jacobian(net, X), v) - pushed
    assert_is(slope(loss_fn(batch=batch).loss, net), slope(errors.square().sum(1).mean(), net))


class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, scale, points):
        return {"scale": scale, "values": self.body(points)}


def test_input_output_and_call_are_named_as_in_the_callback():
    net, loss_fn = Named(), loss_of()
    with loss_fn.observe(net, wrt="points", output="values", call=1):
        net(X[:, 0], points=2.0 * X)
        net(X[:, 0], points=X)
    assert_is(slope(loss_fn().loss, net), slope(frobenius(net.body, target, X), net))


@pytest.mark.parametrize("call", ["first", "all", 0, 1, -1])
def test_the_call_is_chosen_of_those_made(call):
    net, loss_fn = mlp(), loss_of()
    with loss_fn.observe(net, call=call):
        net(X)
        net(2.0 * X)
    each = [frobenius(net, target, X), frobenius(net, target, 2.0 * X)]
    expected = sum(each) / 2 if call == "all" else each[0 if call == "first" else call]
    assert_is(slope(loss_fn().loss, net), slope(expected, net))


def leavings(net):
    return [(sorted(vars(p)), len(p._forward_hooks), len(p._forward_pre_hooks), p.training)
            for p in net.modules()]  # fmt: skip


def test_nothing_is_left_behind_even_by_an_error():
    net, loss_fn, untouched = mlp(), loss_of(), leavings(mlp())
    with loss_fn.observe(net):
        net(X)
    loss_fn()
    assert leavings(net) == untouched
    with pytest.raises(RuntimeError, match="dtype"), loss_fn.observe(net):
        net(X.float())
    assert leavings(net) == untouched


@pytest.mark.parametrize("watches", [False, True])
def test_a_loss_that_saw_nothing_is_a_clear_error(watches):
    net, loss_fn = mlp(), loss_of()
    if watches:
        with loss_fn.observe(net):
            pass
    with pytest.raises(ValueError, match=r"observe|call"):
        loss_fn()


def test_steps_without_the_student_may_be_left_out():
    net, loss_fn = mlp(), loss_of()
    with loss_fn.observe(net, missing="skip"):
        value = net[0].weight.square().sum()
    assert_close(value + loss_fn(), value, rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_a_fisher_projection_has_as_many_directions_as_asked_for(count):
    spied = Overheard()
    term = SobolevTerm(projection="fisher", num_projections=count, normalize="none")
    loss_fn, net = SobolevLoss(spied, SobolevSpec(terms=[term], on="log_softmax")), mlp()
    with loss_fn.observe(net):
        net(X)
    loss_fn()
    assert [len(u) for u in spied.along] == [count]


class Shifted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, shift=None):
        return self.net(x) if shift is None else self.net(x + shift)


def test_an_argument_that_is_left_out_is_no_input():
    loss_fn, net = loss_of(), Shifted()
    with (
        pytest.raises(ValueError, match="the argument must be given in the call"),
        loss_fn.observe(net, wrt="shift"),
    ):
        net(X)


def test_weights_that_moved_before_the_term_are_refused():
    net, loss_fn = mlp(), loss_of(SobolevTerm(**EXACT, rows=0.5))
    with loss_fn.observe(net):
        net(X)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    text = r"weight '0.weight' .* before the term is evaluated \(an optimizer step inside of"
    with pytest.raises(ValueError, match=text):
        loss_fn()


def test_what_has_rows_is_learned_once_in_a_loop():
    net, other, loss_fn = mlp(), mlp(seed=9), loss_of(SobolevTerm(**EXACT, rows=0.5))
    calls = {net: [], other: []}
    for student, made in calls.items():
        student.register_forward_hook(lambda *_, made=made: made.append(1))
    counts = []
    for _ in range(3):
        for student in (net, other):
            before = len(calls[student])
            with loss_fn.observe(student):
                student(X)
            loss_fn()
            counts.append(len(calls[student]) - before)
    assert min(counts[:2]) > 2  # replays, to learn it
    assert counts[2:] == [2] * 4  # the step's own and the rows'
