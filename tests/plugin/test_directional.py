import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import DirectionalTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import Silent, mlp
from tests.plugin._trainers import fit_one_step, weights

TERM = SobolevTerm(side="tangent", normalize="none")


def callback(term=TERM, **options):
    teacher = DirectionalTeacher(tangents=1, pushed=2)
    return SobolevCallback(teacher, SobolevSpec(terms=[term]), module="net", **options)


def expected(x, v, pushed, known):
    """One step of gradient descent on the squared error of directional derivatives."""
    net = mlp()
    ours = torch.stack([torch.func.jvp(net, (x,), (each,))[1] for each in v.unbind(1)], 1)
    error = torch.where(known, ours - pushed.nan_to_num(), 0.0).square().sum(-1)
    loss = error.sum() / known.any(-1).sum()
    gradients = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True,
                                    allow_unused=True)  # fmt: skip
    return weights(net) - torch.cat([gradient.flatten() for gradient in gradients])


@pytest.fixture
def randn(generator):
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("proj", [1, 3])
def test_derivatives_along_given_directions_are_matched(engine, proj, randn):
    x, v, pushed = randn(5, 3), randn(5, proj, 3), randn(5, proj, 2)
    student = Silent()
    single = (v[:, 0], pushed[:, 0]) if proj == 1 else (v, pushed)
    fit_one_step(student, (x, *single), callback(engine=engine))
    assert_close(weights(student), expected(x, v, pushed, torch.ones(5, proj, 2).bool()))


def test_unknown_derivatives_are_left_out(randn):
    x, v, pushed = randn(5, 3), randn(5, 2, 3), randn(5, 2, 2)
    v[0, 1, 2] = pushed[1, 0] = pushed[2, 1, 0] = float("nan")
    known = torch.ones(5, 2, 2).bool()
    known[0, 1], known[1, 0], known[2, 1, 0] = False, False, False
    student = Silent()
    fit_one_step(student, (x, v, pushed), callback())
    assert_close(weights(student), expected(x, v.nan_to_num(), pushed, known))


def test_other_terms_are_refused(randn):
    batch = (randn(5, 3), randn(5, 3), randn(5, 2))
    for term in (SobolevTerm(), SobolevTerm(order=2)):
        with pytest.raises(ValueError, match="must be of order 1 with side='tangent'"):
            fit_one_step(Silent(), batch, callback(term))


def test_other_shapes_are_refused(randn):
    x = randn(5, 3)
    with pytest.raises(ValueError, match=r"tangents must have shape \[batch, \*in\]"):
        fit_one_step(Silent(), (x, randn(5, 2), randn(5, 2)), callback())
    with pytest.raises(ValueError, match="one derivative for each of 2 tangents"):
        fit_one_step(Silent(), (x, randn(5, 2, 3), randn(5, 3, 2)), callback())
