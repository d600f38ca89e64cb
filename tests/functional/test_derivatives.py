import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.functional.derivatives import (
    FuncJet,
    TapeJet,
    hessian,
    hvp,
    jacobian,
    tape_jet,
    value_and_jvp,
    value_and_vjp,
)
from tests import _laws
from tests._reference import (
    central_difference,
    dense_hessian,
    dense_jacobian,
    parameter_gradients_by_differences,
)
from tests.functional._functions import FAMILIES, family

ENGINES = ("func", "tape")


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def case(request, generator):
    fn, x = family(request.param, generator)
    return fn, x, *_directions(fn, x, generator)


def _directions(fn, x, generator, count=3):
    y = fn(x.clone())
    cotangents = torch.randn(count, *y.shape, generator=generator)
    return cotangents, torch.randn(count, *x.shape, generator=generator)


def _jets(fn, x, tangents):
    return {
        "tape": tape_jet(fn, x, create_graph=True),
        "func": FuncJet(fn, x),
        "forward": FuncJet(fn, x, tangents=tangents),
    }


def test_vjp_is_cotangent_times_dense_jacobian(case, engine):
    fn, x, cotangents, _ = case
    value, rows = value_and_vjp(fn, x, cotangents, engine=engine)
    assert_close(value, fn(x.clone()))
    _laws.assert_matches_dense(
        rows, dense_jacobian(lambda row: fn(row.clone()), x).detach(), cotangents
    )


def test_jvp_is_the_finite_difference_along_the_tangent(case, engine):
    fn, x, _, tangents = case
    value, columns = value_and_jvp(fn, x, tangents, engine=engine)
    assert_close(value, fn(x.clone()))
    expected = [central_difference(lambda x: fn(x.clone()), x, v) for v in tangents]
    assert_close(columns, torch.stack(expected), atol=1e-8, rtol=1e-6)


def test_jacobian_is_dense_jacobian(case, engine):
    fn, x, *_ = case
    expected = dense_jacobian(lambda row: fn(row.clone()), x)
    assert_close(jacobian(fn, x, engine=engine), expected)


@pytest.mark.parametrize("name", ["mlp", "poly", "scalar", "matrix", "in_place"])
def test_hessian_by_basis_projections_is_dense_hessian(name, engine, generator):
    fn, x = family(name, generator)
    x = x[:2]
    expected = dense_hessian(lambda row: fn(row.clone()), x)
    assert_close(hessian(fn, x, engine=engine), expected)


def test_hvp_is_the_finite_difference_of_the_vjp(case, engine):
    fn, x, cotangents, tangents = case
    rows = hvp(fn, x, cotangents, tangents, engine=engine)
    expected = [
        central_difference(lambda x, u=u: value_and_vjp(fn, x, u[None])[1][0], x, v)
        for u, v in zip(cotangents, tangents, strict=True)
    ]
    assert_close(rows, torch.stack(expected), atol=1e-8, rtol=1e-6)


def test_all_jets_give_the_same_answers(case):
    fn, x, cotangents, tangents = case
    jets = _jets(fn, x, tangents)
    reference = jets.pop("tape")
    for jet in jets.values():
        assert_close(jet.value, reference.value)
        assert_close(jet.vjp(cotangents), reference.vjp(cotangents))
        assert_close(jet.jvp(tangents), reference.jvp(tangents))
        assert_close(jet.jvp(tangents.flip(0)), reference.jvp(tangents.flip(0)))
        assert_close(jet.hvp(cotangents, tangents), reference.hvp(cotangents, tangents))


@pytest.mark.parametrize("order", ["vjp", "jvp", "hvp"])
@pytest.mark.parametrize("kind", ["tape", "func", "forward"])
def test_parameter_gradient_through_a_jet_is_the_finite_difference(kind, order, generator):
    fn, x = family("mlp", generator)
    cotangents, tangents = _directions(fn, x, generator, count=2)

    def loss():
        jet = _jets(fn, x, tangents)[kind]
        arguments = {"vjp": (cotangents,), "jvp": (tangents,), "hvp": (cotangents, tangents)}
        return getattr(jet, order)(*arguments[order]).square().sum() + jet.value.square().sum()

    ours = torch.autograd.grad(loss(), list(fn.parameters()))
    theirs = parameter_gradients_by_differences(loss, fn)
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close(mine, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_jets_work_without_grad_mode_and_hold_no_graph(mode, generator):
    fn, x = family("mlp", generator)
    cotangents, tangents = _directions(fn, x, generator)
    expected = tape_jet(fn, x)
    with mode():
        # everything is created anew here, so under inference_mode these are inference tensors
        u, v = cotangents.clone(), tangents.clone()
        jets = [tape_jet(fn, x.clone()), FuncJet(fn, x.clone()), FuncJet(fn, x.clone(), tangents=v)]
        found = [(jet.value, jet.vjp(u), jet.jvp(v), jet.hvp(u, v)) for jet in jets]
    answers = [expected.vjp(cotangents), expected.jvp(tangents), expected.hvp(cotangents, tangents)]
    for answer in found:
        assert_close(list(answer), [expected.value, *answers])
    assert not any(tensor.requires_grad for tensor in (*found[0], expected.value, *answers))


def test_no_engine_changes_its_input(engine, generator):
    fn, x = family("in_place", generator)
    before = x.clone()
    value_and_vjp(fn, x, torch.ones(2, *x.shape), engine=engine)
    value_and_jvp(fn, x, torch.ones(2, *x.shape), engine=engine)
    assert_close(x, before, atol=0.0, rtol=0.0)
    assert not x.requires_grad


def test_tape_jet_of_an_intermediate_reaches_what_lies_before_it(generator):
    first, second = nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2))
    points = torch.randn(3, 4, generator=generator)
    cotangents = torch.randn(1, 3, 2, generator=generator)

    def loss():
        hidden = first(points)
        return TapeJet(second(hidden), hidden).vjp(cotangents).square().sum()

    (ours,) = torch.autograd.grad(loss(), first.weight)
    expected = parameter_gradients_by_differences(loss, first)[0]
    assert_close(ours, expected, atol=1e-7, rtol=1e-6)


def test_dropout_mask_is_shared_by_value_and_derivatives(generator):
    dropout = nn.Dropout(0.5)
    x, tangents = torch.ones(2, 40), torch.randn(3, 2, 40, generator=generator)
    for kind in ("tape", "func", "forward"):
        with torch.random.fork_rng():
            torch.manual_seed(generator.initial_seed())
            jet = _jets(dropout, x, tangents)[kind]
            assert_close(jet.jvp(tangents), jet.value * tangents)


def test_func_jet_returns_what_the_function_adds(generator):
    fn, x = family("mlp", generator)
    tangents = torch.randn(2, *x.shape, generator=generator)

    def with_aux(x):
        y = fn(x)
        return y, {"square": y.square()}

    for options in ({}, {"tangents": tangents}, {"tangents": tangents[:1]}):
        jet = FuncJet(with_aux, x, has_aux=True, **options)
        assert_close(jet.value, fn(x))
        assert_close(jet.aux["square"], fn(x).square())
        assert_close(jet.vjp(torch.ones(1, 3, 3)), FuncJet(fn, x).vjp(torch.ones(1, 3, 3)))


def test_func_jet_evaluates_once_for_value_and_first_order(generator):
    fn, x = family("mlp", generator)
    cotangents, tangents = _directions(fn, x, generator)
    calls = []

    def counted(x):
        calls.append(None)
        return fn(x)

    jet = FuncJet(counted, x)
    jet.vjp(cotangents)
    jet.jvp(tangents)
    FuncJet(counted, x, tangents=tangents).jvp(tangents)
    assert len(calls) == 2


def test_unconnected_output_is_an_error():
    bias = nn.Parameter(torch.ones(3))
    unconnected = tape_jet(
        lambda x: bias.expand(len(x), 3) + 0 * x.detach()[:, :1], torch.ones(2, 4)
    )
    with pytest.raises(ValueError, match="does not depend on the observed input"):
        unconnected.vjp(torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="does not depend on the observed input"):
        unconnected.jvp(torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="does not depend on the observed input"):
        tape_jet(lambda x: x.argmax(-1, keepdim=True), torch.ones(2, 4))


def test_observed_input_must_require_grad():
    with pytest.raises(ValueError, match="x must require grad"):
        TapeJet(torch.ones(2, 3), torch.ones(2, 4))


def test_wrong_shapes_name_expected_and_got(engine, generator):
    fn, x = family("mlp", generator)
    with pytest.raises(
        ValueError, match=r"cotangents must have shape \[proj >= 1, 3, 3\], got \[3, 3\]"
    ):
        value_and_vjp(fn, x, torch.ones(3, 3), engine=engine)
    with pytest.raises(
        ValueError, match=r"tangents must have shape \[proj >= 1, 3, 4\], got \[1, 3, 5\]"
    ):
        value_and_jvp(fn, x, torch.ones(1, 3, 5), engine=engine)
    with pytest.raises(ValueError, match=r"cotangents must have shape .* got \[0, 3, 3\]"):
        value_and_vjp(fn, x, torch.ones(0, 3, 3), engine=engine)
    with pytest.raises(ValueError, match=r"same number of projections, got 2 and 1"):
        hvp(fn, x, torch.ones(2, 3, 3), torch.ones(1, 3, 4), engine=engine)


def test_output_must_keep_the_batch_axis(engine):
    with pytest.raises(ValueError, match=r"expected \[3, \*out\], got \[\]"):
        value_and_vjp(torch.sum, torch.ones(3, 2), torch.ones(1), engine=engine)


def test_unknown_engine_is_named():
    with pytest.raises(ValueError, match=r"engine must be one of .*, got 'tap'"):
        value_and_vjp(torch.sin, torch.ones(1, 1), torch.ones(1, 1, 1), engine="tap")
    with pytest.raises(ValueError, match=r"engine must be one of .*, got 'tap'"):
        value_and_jvp(torch.sin, torch.ones(1, 1), torch.ones(1, 1, 1), engine="tap")
