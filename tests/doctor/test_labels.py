"""What near pairs say of labels, against references and closed forms."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.doctor import examine_labels
from lightning_sobolev.doctor.evidence import Case
from lightning_sobolev.doctor.gather import Samples

MIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(3)).double()


def curve(point):
    return torch.tanh(MIX @ point) + point**2


def labeled(function=curve, points=50, inputs=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(points, inputs, generator=generator).double() - 1
    return x, torch.vmap(function)(x), torch.vmap(torch.func.jacrev(function))(x)


def by_loops(x, y, jacobian, neighbors=4):
    """Slope and correlation of every output, pair by pair."""
    spread, rows = x.std(0), []
    for i in range(len(x)):
        apart = [float(((x[j] - x[i]) / spread).square().sum()) for j in range(len(x))]
        for j in sorted(range(len(x)), key=apart.__getitem__)[1 : neighbors + 1]:
            predicted = (jacobian[i] + jacobian[j]) @ (x[j] - x[i]) / 2
            rows.append(torch.stack([predicted, y[j] - y[i]]))
    p, q = torch.stack(rows).unbind(1)
    product = (p * q).sum(0)
    return product / (p * p).sum(0), product / (p.norm(dim=0) * q.norm(dim=0))


def test_slope_and_correlation_are_those_of_the_definition():
    x, y, jacobian = labeled()
    report = examine_labels(x, y, jacobian)
    slope, correlation = by_loops(x, y, jacobian)
    assert_close(report.slope, slope, rtol=1e-9, atol=0)
    assert_close(report.correlation, correlation, rtol=1e-9, atol=0)
    assert (report.points, report.pairs) == (50, 200)


def test_a_quadratic_map_is_explained_exactly():
    x, y, jacobian = labeled(lambda point: (MIX @ point) * point + point.sum())
    report = examine_labels(x, y, jacobian)
    assert_close(report.slope, torch.ones(6).double(), rtol=1e-12, atol=0)
    assert report.finding == "right"
    assert report.findings == ("right",) * 6


FAULTS = {
    "right": lambda jacobian: jacobian,
    "sign": lambda jacobian: -jacobian,
    "unit": lambda jacobian: 100 * jacobian,
    "transposed": lambda jacobian: jacobian.mT,
    "shifted": lambda jacobian: jacobian.roll(1, 0),
}


@pytest.mark.parametrize("finding", FAULTS)
def test_each_fault_is_named_from_fifty_points_of_six_inputs(finding):
    for seed in range(3):
        x, y, jacobian = labeled(seed=seed)
        report = examine_labels(x, y, FAULTS[finding](jacobian))
        assert report.finding == finding
        assert report.is_fault is (finding != "right")
        assert (report.advice() == "") is (finding == "right")


def test_a_factor_is_about_right_and_the_advice_undoes_it():
    x, y, jacobian = labeled(points=200)
    found = examine_labels(x, y, -100 * jacobian)
    assert (found.finding, found.per) == ("unit", None)
    assert found.factor == pytest.approx(-100, rel=0.1)
    assert "scale=, here about -0.0" in found.advice()
    assert "forces=" in examine_labels(x, y, -jacobian).advice()


@pytest.mark.parametrize("by", [-3, 2])
def test_the_shift_is_the_one_that_undoes_it(by):
    x, y, jacobian = labeled()
    report = examine_labels(x, y, jacobian.roll(by, 0))
    assert report.shift == by
    assert f"torch.roll(jacobian, {-by}, 0)" in report.advice()


def test_single_outputs_are_told_apart():
    x, y, jacobian = labeled(points=80)
    jacobian[:, 2] *= -1
    jacobian[:, 4] *= 50
    report = examine_labels(x, y, jacobian)
    assert report.is_fault
    assert report.findings == ("right", "right", "sign", "right", "unit", "right")
    assert report.per == "output"
    assert report.factors[4] == pytest.approx(50, rel=0.1)


def test_single_inputs_are_told_apart():
    x, y, jacobian = labeled(points=200)
    jacobian[:, :, 3] *= -1
    report = examine_labels(x, y, jacobian)
    assert (report.finding, report.per) == ("sign", "input")
    assert [n for n, factor in enumerate(report.factors) if factor < 0] == [3]


def test_noise_is_named_and_is_no_fault(generator):
    x, y, jacobian = labeled(points=500)
    noise = torch.randn(jacobian.shape, generator=generator, dtype=torch.float64)
    report = examine_labels(x, y, jacobian + 0.3 * jacobian.std() * noise)
    assert report.finding == "noise"
    assert not report.is_fault


@pytest.mark.parametrize(
    "function",
    [
        lambda point: torch.sin(40 * point),  # turns between the points
        lambda point: 3 * point - torch.floor(3 * point),  # jumps
        lambda point: torch.relu(point.sum() - 0.1)[None],  # a payoff
        lambda point: torch.exp(3 * point),
    ],
)
def test_right_labels_are_never_faulty(function):
    for seed in range(6):
        assert not examine_labels(*labeled(function, seed=seed)).is_fault


def test_breadth_is_a_number_of_points():
    x, y, jacobian = labeled()
    jacobian[1:] = 0
    alone = Case.of(Samples(x, y, jacobian), 4)
    pairs = alone.pairs
    squares = alone.along.square().sum(1)
    sums = torch.stack([squares[(pairs.first == n) | (pairs.second == n)].sum() for n in range(50)])
    assert_close(alone.breadth(), float(sums.sum() ** 2 / (sums**2).sum()))
    assert alone.breadth() < 4
    assert "a few points outweigh" in examine_labels(x, y, -jacobian).because


def test_values_that_are_noise_are_no_fault(generator):
    x, y, jacobian = labeled()
    y = 10 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    report = examine_labels(x, y, jacobian)
    assert report.finding == "unknown"
    assert "too noisy" in report.because


def test_it_does_not_depend_on_units_or_on_shapes():
    x, y, jacobian = labeled()
    plain = examine_labels(x, y, -jacobian)
    shaped = examine_labels(
        1e3 * x.reshape(-1, 2, 3),
        1e-6 * y.reshape(-1, 3, 2),
        -1e-9 * jacobian.reshape(-1, 3, 2, 2, 3),
    )
    assert_close(plain.slope, shaped.slope)
    assert_close(plain.error, shaped.error)
    assert shaped.finding == "sign"


def test_unknown_entries_are_left_out():
    x, y, jacobian = labeled()
    y[3, 1], jacobian[7, 2, 0] = math.nan, math.inf
    report = examine_labels(x, y, -jacobian)
    kept = [n for n in range(6) if n not in (1, 2)]
    assert_close(report.slope[kept], examine_labels(*labeled()).slope[kept] * -1)
    assert report.slope.isfinite().all()
    assert report.finding == "sign"
    nothing = examine_labels(x, y, torch.full_like(jacobian, math.nan))
    assert nothing.finding == "unknown"


def test_too_few_points_or_equal_ones_tell_nothing():
    x, y, jacobian = labeled(points=29)
    report = examine_labels(x, y, -jacobian)
    assert report.finding == "unknown"
    assert "29 points: at least 30" in report.text()
    same = examine_labels(torch.ones(40, 6), torch.ones(40, 6), torch.ones(40, 6, 6))
    assert "all points coincide" in same.text()


def test_what_does_not_fit_is_refused():
    x, y, jacobian = labeled()
    refused = {
        "y must be \\[50, \\*out\\]": (x, y[1:], jacobian),
        "jacobian must be .*= \\[50, 6, 6\\], got \\[50, 6, 5\\]": (x, y, jacobian[..., 1:]),
        "jacobian must be": (x, y[:, :3], jacobian[:, :, :3]),
        "x must be finite": (x / 0, y, jacobian),
        "x must be \\[points": (x[:0], y[:0], jacobian[:0]),
    }
    for message, given in refused.items():
        with pytest.raises(ValueError, match=message):
            examine_labels(*given)


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    examine_labels(*labeled())
    assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)


def test_error_bars_are_those_of_repetition():
    """The bootstrap's standard error is that of new points, or up to twice as large."""
    reports = [examine_labels(*labeled(points=60, seed=seed)) for seed in range(40)]
    spread = torch.stack([report.slope for report in reports]).std(0)
    claimed = torch.stack([report.error for report in reports]).mean(0)
    assert ((claimed / spread > 0.8) & (claimed / spread < 2.2)).all()


def test_the_growth_of_errors_is_the_power_of_the_distance(generator):
    x = torch.rand(400, 1, generator=generator).double()
    noise = torch.randn(400, 1, 1, generator=generator).double()
    samples = {6.0: (x**3, 3 * x[:, :, None] ** 2), 2.0: (0 * x + x, 1 + 0.1 * noise)}
    for power, (y, jacobian) in samples.items():
        growth = Case.of(Samples(x, y, jacobian), 4).growth()
        assert abs(growth.power - power) < 3 * growth.error + 0.3
        assert growth.error < 0.7
