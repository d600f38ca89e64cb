import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher, SobolevTerm
from lightning_sobolev._types import Query
from lightning_sobolev.spec import OUTPUT_MAPS
from tests._reference import dense_hessian, dense_jacobian
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Regressor, mlp


def value(x):
    return torch.stack([x.prod(-1), x.sin().sum(-1)], dim=-1)


@pytest.fixture
def x(generator):
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


@pytest.fixture
def directions(generator):
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(2, 4, 2), draw(2, 4, 3)


def closed_form():
    return AnalyticTeacher(
        value,
        gradient=lambda x: dense_jacobian(value, x),
        hessian=lambda x: dense_hessian(value, x),
    )


@pytest.mark.parametrize("build", [lambda: AnalyticTeacher(value), closed_form])
def test_answers_agree_with_dense_derivatives(build, x, directions):
    u, v = directions
    jet = build().at(Query(x))
    jacobian, hessian = dense_jacobian(value, x), dense_hessian(value, x)
    assert_close(jet.value, value(x))
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, jacobian))
    assert_close(jet.jvp(v), torch.einsum("boi,pbi->pbo", jacobian, v))
    assert_close(jet.hvp(u, v), torch.einsum("pbo,boij,pbj->pbi", u, hessian, v))


def test_a_differentiated_value_takes_an_output_map(x, directions):
    u, _ = directions
    jet = AnalyticTeacher(value).at(Query(x, torch.tanh))
    jacobian = dense_jacobian(lambda p: value(p).tanh(), x)
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, jacobian))


def test_answers_carry_no_graph(x, directions):
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for build in (
        lambda: AnalyticTeacher(lambda p: p * weight),
        lambda: AnalyticTeacher(
            lambda p: p * weight, gradient=lambda _: weight.diag().expand(4, 3, 3)
        ),
    ):
        jet = build().at(Query(x))
        assert not jet.value.requires_grad
        assert not jet.vjp(torch.ones(1, 4, 3, dtype=torch.float64)).requires_grad
        assert not jet.jvp(directions[1]).requires_grad


def test_what_a_closed_form_cannot_answer_is_named(x, directions):
    with pytest.raises(ValueError, match="on must be 'identity'"):
        closed_form().at(Query(x, OUTPUT_MAPS["softmax"]))
    with pytest.raises(ValueError, match=r"hessian needs gradient beside it, got gradient=None"):
        AnalyticTeacher(value, hessian=lambda x: x)
    teacher = AnalyticTeacher(value, gradient=lambda x: dense_jacobian(value, x))
    with pytest.raises(ValueError, match=r"order-2 term needs hessian=.*AnalyticTeacher gives no"):
        teacher.at(Query(x)).hvp(*directions)


@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_it_teaches_step_by_step_along_random_directions(side):
    term, net = SobolevTerm(side=side), mlp(seed=7)
    teacher = AnalyticTeacher(net, gradient=lambda x: dense_jacobian(net, x))
    found = taught(Regressor(), term, teacher=teacher, doctor=False)
    assert_close(found, by_hand(None, term))
