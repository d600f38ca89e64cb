import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

from lightning_sobolev import TimeSpaceNorm
from lightning_sobolev.functional import Quadrature, gauss_legendre
from lightning_sobolev.metrics import (
    ActionDisagreement,
    DerivativeCosine,
    DerivativeNMSE,
    PolicyKL,
    TimeSpaceError,
    ValueNMSE,
)

NAMES = ("value_nmse", "nmse", "cosine", "kl", "disagreement", "merged")


def _case(name, generator):
    rows = torch.randn(2, 3, 12, 2, 2, generator=generator)
    values = torch.randn(2, 12, 2, generator=generator)
    log_probs = torch.randn(2, 12, 6, generator=generator).log_softmax(-1)
    return {
        "value_nmse": lambda: (ValueNMSE(), *values, 0),
        "nmse": lambda: (DerivativeNMSE(), *rows, 1),
        "cosine": lambda: (DerivativeCosine(), *rows, 1),
        "kl": lambda: (PolicyKL(), *log_probs, 0),
        "disagreement": lambda: (ActionDisagreement(), *log_probs, 0),
        "merged": lambda: (ActionDisagreement(merge=[(0, 1), (2, 4), (3, 5)]), *log_probs, 0),
    }[name]()


@pytest.fixture(params=NAMES)
def case(request, generator):
    return _case(request.param, generator)


def _split(student, target, axis, sizes=(5, 1, 6)):
    return zip(student.split(sizes, axis), target.split(sizes, axis), strict=True)


def _differ(s, t):
    return (s.argmax(-1) != t.argmax(-1)).double().mean()


GROUPS = torch.eye(4)[[0, 0, 2, 3, 2, 3]].double()  # the merged actions above
EXPECTED = {
    "value_nmse": lambda s, t: (s - t).square().mean() / t.var(correction=0),
    "nmse": lambda s, t: (s - t).square().mean() / t.square().mean(),
    "cosine": lambda s, t: cosine_similarity(s.flatten(2), t.flatten(2), dim=-1).mean(),
    "kl": lambda s, t: (t.exp() * (t - s)).sum(-1).mean(),
    "disagreement": _differ,
    "merged": lambda s, t: _differ(s.exp() @ GROUPS, t.exp() @ GROUPS),
}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_formulas(name, generator):
    metric, student, target, _ = _case(name, generator)
    metric.update(student, target)
    expected = EXPECTED[name](student.double(), target.double())
    assert_close(metric.compute(), expected, check_dtype=False)


def test_batches_add_up_to_the_whole(case):
    metric, student, target, axis = case
    metric.update(student, target)
    whole = metric.compute()
    metric.reset()
    for part in _split(student, target, axis):
        metric.update(*part)
    assert_close(metric.compute(), whole)


@pytest.mark.parametrize("name", NAMES)
def test_summed_states_of_two_processes_give_the_whole(name, generator):
    whole, student, target, axis = _case(name, generator)
    first, second = (_case(name, generator)[0] for _ in range(2))
    whole.update(student, target)
    parts = list(_split(student, target, axis, sizes=(4, 8)))
    first.update(*parts[0])
    second.update(*parts[1])
    for state, reduction in first._reductions.items():
        both = torch.stack([getattr(first, state), getattr(second, state)])
        setattr(first, state, reduction(both))
        assert reduction is torch.sum or reduction.__name__ == "dim_zero_sum"
    assert_close(first.compute(), whole.compute())


@pytest.mark.parametrize("name", NAMES)
def test_inference_mode_and_ordinary_mode_mix(name, generator):
    metric, student, target, axis = _case(name, generator)
    metric.update(student, target)
    whole = metric.compute()
    with torch.inference_mode():
        metric.reset()
    for i, part in enumerate(_split(student, target, axis)):
        with torch.inference_mode(i % 2 == 0):
            metric.update(*(t.clone() for t in part))
    assert_close(metric.compute(), whole)


def test_states_hold_no_graph(case):
    metric, student, target, _ = case
    metric.update(student.requires_grad_(), target)
    assert not any(state.requires_grad for state in metric.metric_state.values())


@pytest.mark.parametrize("metric", [ValueNMSE(), DerivativeNMSE(), DerivativeCosine()])
def test_unknown_entries_of_the_target_are_left_out(metric, generator):
    student, target = torch.randn(2, 2, 6, 4, generator=generator)
    metric.update(student[:, :4, :2], target[:, :4, :2])
    expected = metric.compute()
    metric.reset()
    target[:, 4:] = torch.nan
    target[..., 2:] = torch.nan
    metric.update(student, target)
    assert_close(metric.compute(), expected)


def test_value_nmse_of_a_far_mean_loses_no_digits(generator):
    target = 1e4 + torch.randn(1000, generator=generator, dtype=torch.float64)
    metric = ValueNMSE()
    metric.update(torch.full_like(target, float(target.mean())), target)
    assert_close(metric.compute(), torch.tensor(1.0, dtype=torch.float64), atol=1e-6, rtol=0.0)


def test_scalar_inputs_have_no_element_axis():
    student, target = torch.tensor([[1.0, -2.0]]), torch.tensor([[2.0, 2.0]])
    nmse, cosine = DerivativeNMSE(), DerivativeCosine()
    nmse.update(student, target)
    cosine.update(student, target)
    assert_close(nmse.compute(), torch.tensor(17 / 8, dtype=torch.float64))
    assert_close(cosine.compute(), torch.tensor(0.0, dtype=torch.float64))


def test_shapes_that_would_broadcast_are_errors(case):
    metric, student, target, axis = case
    with pytest.raises(ValueError, match=r"must have the same shape, got \["):
        metric.update(student, target.narrow(axis, 0, 1))


def test_merge_must_be_groups_of_distinct_actions():
    with pytest.raises(
        ValueError, match=r"each action once, none negative, got \[\[0, 1\], \[1, 2\]\]"
    ):
        ActionDisagreement(merge=[(0, 1), (1, 2)])
    with pytest.raises(ValueError, match=r"each action once, none negative, got \[\[-1, 0\]\]"):
        ActionDisagreement(merge=[(-1, 0)])
    with pytest.raises(ValueError, match=r"merge must name actions below 3, got 5"):
        ActionDisagreement(merge=[(0, 5)]).update(torch.eye(3), torch.eye(3))


# Errors in time and space


@pytest.mark.parametrize("p", [1.0, 4.0, math.inf])
@pytest.mark.parametrize("q", [2.0, math.inf])
@pytest.mark.usefixtures("float64")
def test_batches_of_times_add_up_to_the_norm_of_the_whole(p, q, generator):
    norm = TimeSpaceNorm(time_order=1, space_order=1, time_exponent=p, space_exponent=q)
    grid = gauss_legendre([(0.0, 2.0), (0.0, 1.0)], [6, 5])
    student, target = (
        {i: torch.randn(6, 5, generator=generator) for i in norm.indices()} for _ in range(2)
    )
    metric = TimeSpaceError(norm)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = Quadrature(grid.points[rows], grid.time_weights[rows], grid.space_weights[rows])
        metric.update(
            {i: d[rows] for i, d in student.items()}, {i: d[rows] for i, d in target.items()}, part
        )
    error = norm({i: student[i] - target[i] for i in student}, grid)
    assert_close(metric.compute(), error / norm(target, grid))


@pytest.mark.usefixtures("float64")
def test_a_missing_derivative_is_named():
    grid = gauss_legendre([(0.0, 1.0), (0.0, 1.0)], 2)
    values = {(0, 0): torch.ones(2, 2)}
    metric = TimeSpaceError(TimeSpaceNorm(space_order=1))
    with pytest.raises(ValueError, match=r"student must hold .* got none of \[\(0, 1\)\]"):
        metric.update(values, values, grid)
