"""Terms are tensors of their own: whatever weighs several losses takes them one by one."""

import pytest
import torch
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector

from lightning_sobolev import AnalyticTeacher, SobolevLoss, SobolevTerm
from tests.kinds._by_hand import EXACT, X, Y, assert_is, frobenius, mlp, slope, target

TERM = SobolevTerm(**EXACT, weight=0.1)


def loss_of(*terms):
    return SobolevLoss(AnalyticTeacher(target), terms)


def flat(tensors):
    return parameters_to_vector(tensors).detach().clone()


TWO = (TERM, SobolevTerm(**EXACT, order=0, name="value"))


def parts(net):
    return {
        "order_1": frobenius(net, target, X),
        "value": (net(X) - target(X)).square().sum(1).mean(),
    }


def test_terms_are_tensors_of_their_own():
    net, loss_fn = mlp(), loss_of(*TWO)
    with loss_fn.observe(net):
        net(X)
    report, expected = loss_fn(), parts(net)
    assert list(report.terms) == ["order_1", "value"]
    for key, term in report.terms.items():
        assert term.shape == ()
        found = torch.autograd.grad(term, list(net.parameters()), retain_graph=True,
                                    allow_unused=True, materialize_grads=True)  # fmt: skip
        assert_is(flat(found), slope(expected[key], net))


def surgery(losses, net):
    """Project each gradient on the normal plane of those that it conflicts with (PCGrad)."""
    gradients = [
        flat(torch.autograd.grad(loss, list(net.parameters()), retain_graph=True,
                                 allow_unused=True, materialize_grads=True))
        for loss in losses
    ]  # fmt: skip
    projected, conflicts = [], 0
    for g in gradients:
        own = g.clone()
        for other in gradients:
            if (dot := own @ other) < 0:
                own, conflicts = own - dot / other.square().sum() * other, conflicts + 1
        projected.append(own)
    return sum(projected), conflicts


def test_gradient_surgery_takes_value_and_terms():
    net, loss_fn = mlp(), loss_of(*TWO)
    with loss_fn.observe(net):
        value = mse_loss(net(X), -5.0 * Y)
    found, _ = surgery([value, *loss_fn().terms.values()], net)
    expected, conflicts = surgery([mse_loss(net(X), -5.0 * Y), *parts(net).values()], net)
    assert conflicts
    assert_is(found, expected)


def test_jacobian_descent_takes_value_and_terms():
    autojac = pytest.importorskip("torchjd.autojac")
    from torchjd.aggregation import Sum

    net, loss_fn = mlp(), loss_of(*TWO)
    with loss_fn.observe(net):
        value = mse_loss(net(X), Y)
    losses = [value, *loss_fn().terms.values()]
    if hasattr(autojac, "jac_to_grad"):
        autojac.backward(losses)
        autojac.jac_to_grad(list(net.parameters()), Sum())
    else:
        autojac.backward(losses, Sum())
    found = flat([p.grad for p in net.parameters()])
    assert_is(found, slope(mse_loss(net(X), Y) + sum(parts(net).values()), net))
