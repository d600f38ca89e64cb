import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import TimeSpaceNorm
from lightning_sobolev.activations import ReCU
from lightning_sobolev.functional import gauss_legendre, mixed_derivatives
from lightning_sobolev.recu.approximation import approximate, num_weights
from lightning_sobolev.recu.exact import identity, monomial, partition_of_unity, product, square

pytestmark = pytest.mark.usefixtures("float64")
EPSILON = torch.finfo(torch.float64).eps
BOX = [(0.0, 2.0), (-1.0, 1.0)]


def uniform(generator, rows, columns, size=1.0):
    return size * (2 * torch.rand(rows, columns, generator=generator) - 1)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_x_x_squared_and_x_y_are_exact_to_rounding(size, generator):
    x = uniform(generator, 400, 2, size)
    cases = [
        (identity(size), x[:, :1], x[:, :1], size),
        (square(size), x[:, :1], x[:, :1] ** 2, size**2),
        (product(size), x, x[:, :1] * x[:, 1:], size**2),
    ]
    for net, inputs, expected, largest in cases:
        assert_close(net(inputs).detach(), expected, rtol=0.0, atol=8 * EPSILON * largest)


def test_their_derivatives_are_exact_too(generator):
    x = uniform(generator, 50, 2)
    net = product()
    found = mixed_derivatives(lambda x: net(x)[:, 0], x, [(1, 0), (1, 1), (2, 0)])
    assert_close(found[1, 0].detach(), x[:, 1], rtol=0.0, atol=50 * EPSILON)
    assert_close(found[1, 1].detach(), torch.ones(50), rtol=0.0, atol=50 * EPSILON)
    assert_close(found[2, 0].detach(), torch.zeros(50), rtol=0.0, atol=50 * EPSILON)


@pytest.mark.parametrize("exponents", [(1,), (3,), (7,), (1, 1), (3, 2, 4), (0, 5)])
def test_monomials(exponents, generator):
    x = uniform(generator, 100, len(exponents), 2.0)
    net = monomial(exponents, scale=2.0)
    expected = math.prod(x[:, i] ** n for i, n in enumerate(exponents))
    assert_close(net(x)[:, 0].detach(), expected, rtol=0.0, atol=50 * EPSILON * 2 ** sum(exponents))
    hidden = sum(isinstance(layer, ReCU) for layer in net)
    assert hidden == max(1, math.ceil(math.log2(sum(exponents))))
    assert all(isinstance(layer, nn.Linear | ReCU) for layer in net)


@pytest.mark.parametrize("cells", [1, 4, 32])
def test_the_partition_adds_up_to_one_with_all_its_derivatives(cells):
    x = torch.linspace(-1, 3, 401)[:, None]
    net = partition_of_unity(-1.0, 3.0, cells)
    parts = net(x).detach()
    assert parts.shape == (401, cells + 3)
    assert_close(parts.sum(1), torch.ones(401), rtol=0.0, atol=1e-10)
    assert parts.min() > -1e-10
    middles = -1 + 4 / cells * (torch.arange(cells + 3) - 1)
    assert parts[(x - middles).abs() >= 8 / cells].abs().max() < 1e-10
    slope = torch.func.vmap(torch.func.jacfwd(lambda x: net(x[None])[0].sum()))(x)
    assert_close(slope, torch.zeros(401, 1), rtol=0.0, atol=1e-8)


def test_a_polynomial_of_the_degree_is_reproduced():
    def cubic(x):
        t, y = x.unbind(-1)
        return 1 + t - 2 * y + t * y - t**2 * y + y**3 - 0.5 * t**3

    net = approximate(cubic, BOX, 3, degree=3)
    x = gauss_legendre(BOX, 7).points.reshape(-1, 2)
    assert_close(net(x)[:, 0].detach(), cubic(x), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_the_error_falls_at_least_as_fast_as_derived(degree):
    def wave(x):
        return torch.exp(-x[:, 0]) * torch.sin(2 * x[:, 1] + 0.3)

    norms = {0: TimeSpaceNorm(), 1: TimeSpaceNorm(time_order=1, space_order=1, total_order=1)}
    found = {}
    for cells in (4, 8):
        net = approximate(wave, BOX, cells, degree=degree)
        grid = gauss_legendre(BOX, 2, panels=cells)
        needed = norms[1].indices()
        with torch.no_grad():
            error = mixed_derivatives(lambda x, n=net: n(x)[:, 0] - wave(x), grid.points, needed)
        found[cells] = {order: float(norm(error, grid)) for order, norm in norms.items()}
    for order in norms:
        rate = math.log2(found[4][order] / found[8][order])
        assert rate > degree + 1 - order - 0.35


def test_weights_that_are_not_zero_are_counted():
    assert num_weights(identity()) == 6 + 4 + 6  # into, shift (two are zero), out
    assert num_weights(square()) == 4 + 4 + 4 + 1


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="exponents must be whole numbers >= 0, not all of them 0"):
        monomial([0, 0])
    with pytest.raises(ValueError, match="degree must be 0, 1, 2 or 3, got 4"):
        approximate(lambda x: x[:, 0], BOX, 2, degree=4)
    with pytest.raises(ValueError, match="one axis of space, got 3 axes"):
        approximate(lambda x: x[:, 0], [*BOX, (0.0, 1.0)], 2)
    with pytest.raises(ValueError, match="cells must be at least 1, got 0"):
        partition_of_unity(0.0, 1.0, 0)
    with pytest.raises(ValueError, match="high must be above low"):
        partition_of_unity(1.0, 0.0, 2)
