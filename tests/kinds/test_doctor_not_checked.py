"""Where nothing was compared the doctor says so, and why; "agrees" is for what was compared."""

import contextlib
import random

import pytest
import torch
from torch import nn

from tests.kinds._by_hand import (
    Step,
    X,
    Y,
    assert_is,
    exact,
    fit,
    frobenius,
    mlp,
    said,
    share,
    slope,
    target,
)


class Keeps(nn.Module):
    """Holds its last output, a tensor with a graph, which torch does not copy."""

    def __init__(self):
        super().__init__()
        self.body, self.last = mlp(), None

    def forward(self, x):
        self.last = self.body(x)
        return self.last


class Wavers(nn.Module):
    """Never answers twice alike."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.body(x) * (1.0 + random.SystemRandom().random())


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def __deepcopy__(self, memo):
        raise TypeError("this network holds a file")

    def forward(self, x):
        return self.body(x)


CANNOT = {
    "not deterministic": (Wavers, "determin"),
    "cannot be copied": (Locked, "this network holds a file"),
}


@pytest.mark.filterwarnings("error:Sobolev doctor")
def test_a_student_that_holds_a_graph_is_checked_and_keeps_it():
    module = Step(Keeps())
    lines = said(lambda: fit(module, [(X, Y)], exact(doctor=True)))
    assert any("agrees with" in line for line in lines), lines
    assert any("times the time" in line for line in lines), lines
    assert module.net.last.grad_fn is not None


@pytest.mark.parametrize("name", CANNOT)
def test_what_could_not_be_checked_is_said_with_the_reason(name):
    make, why = CANNOT[name]
    lines = said(lambda: fit(Step(make()), [(X, Y)], exact(doctor=True)))
    found = [line for line in lines if "not checked" in line]
    assert found, "\n".join(lines)
    assert any(why in line for line in found), found
    assert not any("agrees with" in line for line in lines)


@pytest.mark.filterwarnings("ignore:Sobolev doctor")
@pytest.mark.parametrize("make", [Keeps, Locked])
def test_what_could_not_be_checked_trains_all_the_same(make):
    net = make()
    expected = slope(frobenius(net.body, target, X), net)
    assert_is(share(lambda: Step(make()), [(X, Y)], exact(doctor=True)), expected)


def test_a_large_student_is_not_checked(monkeypatch):
    from lightning_sobolev.doctor import differences

    monkeypatch.setattr(differences, "MAX_PARAMETERS", 10)
    lines = said(lambda: fit(Step(), [(X, Y)], exact(doctor=True)))
    assert any("not checked" in line and "parameters" in line for line in lines), lines
    assert not any("agrees with" in line for line in lines)


def test_a_small_student_is_checked():
    lines = said(lambda: fit(Step(), [(X, Y)], exact(doctor=True)))
    assert sum("agrees with" in line for line in lines) == 1
    assert not any("not checked" in line for line in lines)


@pytest.mark.parametrize("doctor", [True, False])
def test_without_a_derivative_or_a_doctor_there_is_nothing_to_agree(doctor):
    order = 0 if doctor else 1
    callback = exact(doctor=doctor, term={"order": order})
    lines = said(lambda: fit(Step(), [(X, Y)], callback))
    assert not any("agrees with" in line for line in lines)


def test_no_rows_are_no_agreement():
    class Sums(Step):
        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - batch[1]).square().sum()

    lines = said(lambda: fit(Sums(), [(X[:0], Y[:0])], exact(doctor=True)))
    assert not any("agrees with" in line for line in lines)


def test_a_derivative_that_no_parameter_moves_is_no_agreement():
    """Shift alone: the Jacobian is the identity, whatever is learned."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(2).double())

        def forward(self, x):
            return x[:, :2].sin() + self.bias

    def run():
        with contextlib.suppress(ValueError):  # to refuse it is as good as to say it
            fit(Step(Shift()), [(X, Y)], exact(doctor=True))

    lines = said(run)
    assert not any("agrees with" in line for line in lines)
