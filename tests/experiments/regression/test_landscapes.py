import math
import pickle

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.landscapes import LANDSCAPES, landscape
from lightning_sobolev.functional.derivatives import hessian, jacobian
from tests._reference import central_difference

pytestmark = pytest.mark.usefixtures("float64")

MINIMA = {
    "ackley": ((0.0, 0.0), 0.0),
    "beale": ((3.0, 0.5), 0.0),
    "booth": ((1.0, 3.0), 0.0),
    "bukin_n6": ((-10.0, 1.0), 0.0),
    "cross_in_tray": ((1.349406608602084, -1.349406608602084), -2.062611870822739),
    "griewank": ((0.0, 0.0), 0.0),
    "mccormick": (
        ((1 - 2 * math.pi / 3) / 2, (-1 - 2 * math.pi / 3) / 2),
        -math.sqrt(3) / 2 - math.pi / 3,
    ),
    "rosenbrock": ((1.0, 1.0), 0.0),
    "styblinski_tang": ((-2.903534027771177, -2.903534027771177), -78.33233140754282),
}
ON_THE_EDGE = {"eggholder": ((512.0, 404.2318058008512), -959.6406627208506)}
CASES = [(name, dim) for name, f in LANDSCAPES.items() for dim in ((2,) if f.dim else (2, 5))]


@pytest.fixture(params=CASES, ids=str)
def function_and_points(request, generator):
    """A test function and points of its domain, away from the kinks."""
    name, dim = request.param
    function = landscape(name)
    bounds = torch.tensor(function.bounds(dim))
    low, high = bounds.unbind(-1)
    x = low + (high - low) * torch.rand(200, dim, generator=generator)
    return function, x[smooth(name, x)]


def smooth(name, x):
    """Say which points keep a distance from lines where derivatives are unbounded."""
    u, v = x[:, 0], x[:, 1]
    if name == "bukin_n6":
        return (v - 0.01 * u.square()).abs() > 0.05
    if name == "eggholder":
        return torch.minimum((u / 2 + v + 47).abs(), (u - v - 47).abs()) > 1.0
    if name == "cross_in_tray":
        return torch.sin(x).abs().amin(-1) > 0.05
    return torch.ones_like(u, dtype=torch.bool)


def test_ten_functions_are_there():
    assert set(LANDSCAPES) == {*MINIMA, *ON_THE_EDGE}
    assert len(LANDSCAPES) == 10


def test_gradient_is_that_of_autograd(function_and_points):
    function, x = function_and_points
    assert_close(function.gradient(x), jacobian(function.value, x))


def test_hessian_is_that_of_autograd(function_and_points):
    function, x = function_and_points
    assert_close(function.hessian(x), hessian(function.value, x))


def test_gradient_is_the_finite_difference(function_and_points, generator):
    function, x = function_and_points
    v = torch.randn(x.shape, generator=generator)
    expected = central_difference(function.value, x, v, 1e-6)
    assert_close((function.gradient(x) * v).sum(-1), expected, atol=1e-4, rtol=1e-5)


def test_hessian_is_the_finite_difference_of_the_gradient(function_and_points, generator):
    function, x = function_and_points
    v = torch.randn(x.shape, generator=generator)
    expected = central_difference(function.gradient, x, v, 1e-6)
    products = (function.hessian(x) @ v[..., None]).squeeze(-1)
    assert_close(products, expected, atol=1e-4, rtol=1e-5)


def test_hessian_is_symmetric(function_and_points):
    function, x = function_and_points
    assert_close(function.hessian(x), function.hessian(x).mT)


@pytest.mark.parametrize("name", MINIMA)
def test_value_and_gradient_at_the_known_minimum(name):
    point, lowest = MINIMA[name]
    x = torch.tensor([point])
    assert_close(landscape(name).value(x), torch.tensor([lowest]))
    assert_close(landscape(name).gradient(x), torch.zeros(1, 2), atol=1e-7, rtol=0.0)


def test_value_and_gradient_at_a_minimum_on_the_edge_of_the_domain():
    point, lowest = ON_THE_EDGE["eggholder"]
    x, function = torch.tensor([point]), landscape("eggholder")
    assert_close(function.value(x), torch.tensor([lowest]))
    across, along = function.gradient(x)[0]
    assert across < 0  # it would go on falling outside
    assert_close(along, torch.zeros(()), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("name", [name for name in MINIMA if name not in ("ackley", "bukin_n6")])
def test_hessian_at_the_known_minimum_is_positive(name):
    eigenvalues = torch.linalg.eigvalsh(landscape(name).hessian(torch.tensor([MINIMA[name][0]])))
    assert (eigenvalues > 0).all()


@pytest.mark.parametrize("name", [*MINIMA, *ON_THE_EDGE])
def test_no_point_of_the_domain_is_below_the_known_minimum(name, generator):
    low, high = torch.tensor(landscape(name).bounds()).unbind(-1)
    x = low + (high - low) * torch.rand(5000, 2, generator=generator)
    lowest = (MINIMA | ON_THE_EDGE)[name][1]
    assert landscape(name).value(x).min() >= lowest - 1e-12


@pytest.mark.parametrize(
    ("name", "dim", "point", "lowest"),
    [
        ("ackley", 7, 0.0, 0.0),
        ("griewank", 7, 0.0, 0.0),
        ("rosenbrock", 7, 1.0, 0.0),
        ("styblinski_tang", 7, -2.903534027771177, -7 * 39.16616570377142),
    ],
)
def test_minimum_in_more_dimensions(name, dim, point, lowest):
    x = torch.full((1, dim), point)
    assert_close(landscape(name).value(x), torch.tensor([lowest]))
    assert_close(landscape(name).gradient(x), torch.zeros(1, dim), atol=1e-7, rtol=0.0)


def test_derivatives_vanish_on_the_cross_of_the_tray():
    function = landscape("cross_in_tray")
    x = torch.tensor([[0.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert_close(function.value(x), torch.full((3,), -1e-4))
    assert_close(function.gradient(x), torch.zeros(3, 2), atol=0.0, rtol=0.0)
    assert_close(function.hessian(x), torch.zeros(3, 2, 2), atol=0.0, rtol=0.0)


def test_what_has_a_derivative_keeps_it_where_another_part_has_none():
    """On one of Eggholder's lines the other wave is smooth, and counts."""
    function = landscape("eggholder")
    x = torch.tensor([[147.0, 100.0], [-2.0, -46.0]])  # u - w = 0; u / 2 + w = 0
    assert function.gradient(x).isfinite().all()
    assert function.hessian(x).isfinite().all()
    u, w = 147.0, 147.0
    root = math.sqrt(1.5 * u)
    slope = math.cos(root) / (2 * root)
    expected = torch.tensor([-0.5 * w * slope, -math.sin(root) - w * slope])
    assert_close(function.gradient(x)[0], expected)


def test_derivatives_are_finite_on_the_kinks():
    origin = torch.zeros(1, 2)
    ridge = torch.tensor([[-10.0, 1.0], [-5.0, 0.25], [-10.0, 2.0]])
    ackley, bukin = landscape("ackley"), landscape("bukin_n6")
    assert_close(ackley.gradient(origin), origin, atol=0.0, rtol=0.0)
    # what is left of the Hessian without the cone is that of the wave
    assert_close(ackley.hessian(origin), 2 * math.pi**2 * math.e * torch.eye(2)[None])
    assert_close(bukin.gradient(ridge[:1]), torch.zeros(1, 2), atol=0.0, rtol=0.0)
    assert_close(bukin.gradient(ridge[2:])[:, 0], torch.tensor([10.0]))
    assert bukin.gradient(ridge).isfinite().all()
    assert bukin.hessian(ridge).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_type_of_the_points(function_and_points, dtype):
    function, x = function_and_points
    for answer in (function.value, function.gradient, function.hessian):
        assert answer(x.to(dtype)).dtype == dtype


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
    for name, expected in by_hand.items():
        assert_close(landscape(name).value(x), torch.tensor([expected]))


def test_landscapes_can_be_pickled_and_are_frozen():
    for function in LANDSCAPES.values():
        assert pickle.loads(pickle.dumps(function)) == function
    with pytest.raises(AttributeError, match="cannot assign to field"):
        function.name = "other"


def test_unknown_function_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"function must be one of ackley, .*, got 'akley'"):
        landscape("akley")


def test_wrong_dimension_is_named():
    with pytest.raises(ValueError, match=r"dim must be 2 for booth, got 3"):
        landscape("booth").value(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"dim must be 2 for booth, got 3"):
        landscape("booth").bounds(3)
    with pytest.raises(ValueError, match=r"dim must be at least 2 for rosenbrock, got 1"):
        landscape("rosenbrock").gradient(torch.ones(4, 1))
    with pytest.raises(ValueError, match=r"tensor \[batch, d\], got torch.float64 \[2\]"):
        landscape("ackley").hessian(torch.ones(2))
    with pytest.raises(ValueError, match=r"floating-point .* got torch.int64 \[1, 2\]"):
        landscape("ackley").value(torch.ones(1, 2, dtype=torch.long))
