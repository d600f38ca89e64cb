"""What a teacher's derivative is made of, against closed forms in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import AnalyticTeacher
from lightning_sobolev.doctor.gradients import gradient_of


def cloud(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(fn, x, near=None, spread=None, thresholds=()):
    spread = torch.ones(x.shape[1:], dtype=x.dtype) if spread is None else spread
    return gradient_of(AnalyticTeacher(fn), x, near or {}, lambda y: y, spread, thresholds)


def test_a_linear_teacher_has_the_same_derivative_everywhere():
    matrix, x = cloud(6, 3), cloud(8, 6, seed=1)
    (found,) = measured(lambda x: x @ matrix, x, {0.1: cloud(8, 6, seed=2)}).stability
    assert (found.noise, found.nmse) == (0.1, 0.0)
    assert_close(found.cosine, 1.0)


def test_the_derivative_of_half_a_square_is_the_state():
    x, noise = cloud(30, 4), cloud(30, 4, seed=1)
    near = {0.1: x + 0.1 * noise, 3.0: x + 3 * noise}
    found = measured(lambda x: x.square().sum(1) / 2, x, near).stability
    for each, there in zip(found, near.values(), strict=True):
        assert_close(each.nmse, float((there - x).square().sum() / x.square().sum()))
        assert_close(each.cosine, float((there * x).sum() / there.norm() / x.norm()))


def test_blocks_change_nothing(monkeypatch):
    x, near = cloud(11, 2, 5), {1.0: cloud(11, 2, 5, seed=1)}

    def cubes(x):
        return x.pow(3).sum(2)

    whole = measured(cubes, x, near, cloud(2, 5).abs(), (0.5,))
    monkeypatch.setattr("lightning_sobolev.doctor.moves._CHUNK", 30)  # three rows
    parts = measured(cubes, x, near, cloud(2, 5).abs(), (0.5,))
    assert_close(parts.stability[0].nmse, whole.stability[0].nmse)
    assert_close(parts.varying[0].energy, whole.varying[0].energy)
    assert_close(parts.spectrum.high, whole.spectrum.high)


def test_combinations_of_many_outputs_say_the_same_of_one_function():
    x, factors, near = cloud(9, 3), cloud(1, 40), cloud(9, 3, seed=1)
    one = measured(lambda x: x.sin().sum(1, keepdim=True), x, {1.0: near})
    many = measured(lambda x: x.sin().sum(1, keepdim=True) @ factors, x, {1.0: near})
    assert_close(many.stability[0].nmse, one.stability[0].nmse)
    assert_close(many.stability[0].cosine, one.stability[0].cosine)


def test_energy_on_inputs_that_vary():
    weights = torch.tensor([3.0, 4.0, 12.0], dtype=torch.float64)
    spread = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
    found = measured(lambda x: x @ weights, cloud(5, 3), None, spread, (0.0, 0.1, 0.5)).varying
    assert [each.above for each in found] == [0.0, 0.1, 0.5]
    assert_close([each.inputs for each in found], [2 / 3, 2 / 3, 1 / 3])
    assert_close([each.energy for each in found], [160 / 169, 160 / 169, 144 / 169])


def waves(height, width, *terms):
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)
    parts = (
        size * torch.cos(2 * math.pi * (up * rows / height + across * columns / width))
        for size, up, across in terms
    )
    return sum(parts)


@pytest.mark.parametrize(
    ("terms", "low", "high"),
    [
        ([(1.0, 0, 0)], 1.0, 0.0),
        ([(1.0, 1, 0)], 1.0, 0.0),  # 1 / 20 cycles a place
        ([(1.0, 0, 4)], 0.0, 0.0),  # 4 / 24
        ([(1.0, 5, 6)], 0.0, 1.0),  # a quarter along both axes, 0.35 across them
        ([(3.0, 1, 0), (4.0, 0, 9)], 9 / 25, 16 / 25),
    ],
)
def test_energy_of_waves_lies_at_their_frequency(terms, low, high):
    weights = waves(20, 24, *terms)
    channels = torch.tensor([1.0, 2.0], dtype=torch.float64)[:, None, None]
    fn = lambda x: (x * weights * channels).sum((1, 2, 3))  # noqa: E731
    found = measured(fn, cloud(3, 2, 20, 24)).spectrum
    assert_close([found.low, found.high], [low, high], rtol=0, atol=1e-12)


def test_signals_have_frequencies_and_vectors_none():
    wave = waves(1, 10, (1.0, 0, 4))[0]
    found = measured(lambda x: (x * wave).sum((1, 2)), cloud(3, 1, 10)).spectrum
    assert_close([found.low, found.high], [0.0, 1.0], rtol=0, atol=1e-12)
    assert measured(lambda x: x.sum(1), cloud(3, 10)).spectrum is None


def test_a_derivative_of_zero_has_no_shares():
    assert measured(torch.floor, cloud(5, 3), {1.0: cloud(5, 3, seed=1)}) is None


def test_derivatives_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="teacher must be finite in value and derivative"):
        measured(lambda x: x.sqrt(), torch.zeros(2, 1, dtype=torch.float64))
