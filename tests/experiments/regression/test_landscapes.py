import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.landscapes import LANDSCAPES, landscape
from lightning_sobolev.functional.derivatives import hessian, jacobian

pytestmark = pytest.mark.usefixtures("float64")

TWO, ONE = -2.903534027771177, -39.16616570377142  # of Styblinski-Tang, one input
MINIMA = {
    "ackley": ([0.0, 0.0], 0.0),
    "beale": ([3.0, 0.5], 0.0),
    "booth": ([1.0, 3.0], 0.0),
    "bukin_n6": ([-10.0, 1.0], 0.0),
    "cross_in_tray": ([1.349406608602084, -1.349406608602084], -2.062611870822739),
    "griewank": ([0.0, 0.0], 0.0),
    "mccormick": (
        [(1 - 2 * math.pi / 3) / 2, (-1 - 2 * math.pi / 3) / 2],
        -math.sqrt(3) / 2 - math.pi / 3,
    ),
    "rosenbrock": ([1.0, 1.0], 0.0),
    "styblinski_tang": ([TWO, TWO], 2 * ONE),
}
IN_SEVEN_DIMENSIONS = {
    "ackley": ([0.0] * 7, 0.0),
    "griewank": ([0.0] * 7, 0.0),
    "rosenbrock": ([1.0] * 7, 0.0),
    "styblinski_tang": ([TWO] * 7, 7 * ONE),
}
CASES = [(name, dim) for name, f in LANDSCAPES.items() for dim in ((2,) if f.dim else (2, 5))]


def points(name, dim, generator, count=200):
    low, high = torch.tensor(landscape(name).bounds(dim)).unbind(-1)
    return low + (high - low) * torch.rand(count, dim, generator=generator)


def away_from_kinks(name, x):
    """Keep what has a distance from lines where derivatives are unbounded."""
    u, v = x[:, 0], x[:, 1]
    distances = {
        "bukin_n6": (v - 0.01 * u.square()).abs() / 0.05,
        "eggholder": torch.minimum((u / 2 + v + 47).abs(), (u - v - 47).abs()),
        "cross_in_tray": torch.sin(x).abs().amin(-1) / 0.05,
    }
    return x[distances.get(name, torch.full_like(u, 2.0)) > 1.0]


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_derivatives_are_those_of_autograd(name, dim, generator):
    function = landscape(name)
    x = away_from_kinks(name, points(name, dim, generator))
    assert_close(function.derivatives(x)[1], jacobian(function.value, x))
    assert_close(function.derivatives(x)[2], hessian(function.value, x))
    assert {part.dtype for part in function.derivatives(x.float())} == {torch.float32}


def test_value_of_one_point_worked_by_hand():
    x = torch.tensor([[1.0, 2.0]])
    by_hand = {
        "beale": (1.5 + 1) ** 2 + (2.25 + 3) ** 2 + (2.625 + 7) ** 2,
        "booth": 4.0 + 1.0,
        "rosenbrock": 100.0,
        "styblinski_tang": 0.5 * ((1 - 16 + 5) + (16 - 64 + 10)),
        "mccormick": math.sin(3) + 1 - 1.5 + 5 + 1,
        "bukin_n6": 100 * math.sqrt(1.99) + 0.11,
        "griewank": 5 / 4000 - math.cos(1) * math.cos(2 / math.sqrt(2)) + 1,
        "eggholder": -49 * math.sin(math.sqrt(49.5)) - math.sin(math.sqrt(48)),
        "cross_in_tray": -1e-4
        * (math.sin(1) * math.sin(2) * math.exp(100 - math.sqrt(5) / math.pi) + 1) ** 0.1,
        "ackley": -20 * math.exp(-0.2 * math.sqrt(2.5)) - math.exp(1) + 20 + math.e,
    }
    assert by_hand.keys() == LANDSCAPES.keys()
    for name, expected in by_hand.items():
        assert_close(landscape(name).value(x), torch.tensor([expected]))


@pytest.mark.parametrize(("name", "minimum"), [*MINIMA.items(), *IN_SEVEN_DIMENSIONS.items()])
def test_known_minima(name, minimum):
    point, lowest = minimum
    value, gradient, hessian = landscape(name).derivatives(torch.tensor([point]))
    assert_close(value, torch.tensor([lowest]))
    assert_close(gradient, torch.zeros(1, len(point)), atol=1e-7, rtol=0.0)
    if name not in ("ackley", "bukin_n6"):  # they have a cone and a ridge there
        assert (torch.linalg.eigvalsh(hessian) > 0).all()


def test_derivatives_vanish_on_the_cross_of_the_tray():
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    value, gradient, hessian = landscape("cross_in_tray").derivatives(x)
    assert_close(value, torch.full((3,), -1e-4))
    assert_close(gradient, torch.zeros(3, 2), atol=0.0, rtol=0.0)
    assert_close(hessian, torch.zeros(3, 2, 2), atol=0.0, rtol=0.0)


def test_what_has_a_derivative_keeps_it_where_another_part_has_none():
    """On one of Eggholder's lines the other wave is smooth, and counts."""
    x = torch.tensor([[147.0, 100.0], [-2.0, -46.0]])  # u - w = 0; u / 2 + w = 0
    _, gradient, hessian = landscape("eggholder").derivatives(x)
    assert gradient.isfinite().all()
    assert hessian.isfinite().all()
    u, w = 147.0, 147.0
    root = math.sqrt(1.5 * u)
    slope = math.cos(root) / (2 * root)
    expected = torch.tensor([-0.5 * w * slope, -math.sin(root) - w * slope])
    assert_close(gradient[0], expected)


def test_derivatives_are_finite_on_the_kinks():
    origin = torch.zeros(1, 2)
    ridge = torch.tensor([[-10.0, 1.0], [-5.0, 0.25], [-10.0, 2.0]])
    ackley, bukin = landscape("ackley"), landscape("bukin_n6")
    assert_close(ackley.derivatives(origin)[1], origin, atol=0.0, rtol=0.0)
    # what is left of the Hessian without the cone is that of the wave
    assert_close(ackley.derivatives(origin)[2], 2 * math.pi**2 * math.e * torch.eye(2)[None])
    assert_close(bukin.derivatives(ridge[:1])[1], torch.zeros(1, 2), atol=0.0, rtol=0.0)
    assert_close(bukin.derivatives(ridge[2:])[1][:, 0], torch.tensor([10.0]))
    assert bukin.derivatives(ridge)[1].isfinite().all()
    assert bukin.derivatives(ridge)[2].isfinite().all()


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("akley", None, r"function must be one of ackley, .*, got 'akley'"),
        ("booth", torch.ones(4, 3), "dim must be 2 for booth, got 3"),
        ("rosenbrock", torch.ones(4, 1), "dim must be at least 2 for rosenbrock, got 1"),
        ("ackley", torch.ones(2), r"tensor \[batch, d\], got torch.float32 \[2\]"),
        ("ackley", torch.ones(1, 2).long(), r"floating-point .* got torch.int64 \[1, 2\]"),
    ],
)
def test_wrong_names_and_points_are_told(name, x, message):
    with pytest.raises(ValueError, match=message):
        landscape(name).value(x)
    if x is not None and x.dim() == 2 and x.is_floating_point():
        with pytest.raises(ValueError, match=message):
            landscape(name).bounds(x.shape[1])
