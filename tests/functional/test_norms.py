import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import TimeSpaceNorm
from lightning_sobolev.functional import Quadrature, gauss_legendre, mixed_derivatives, monte_carlo

pytestmark = pytest.mark.usefixtures("float64")

BOX = [(0.0, 1.0), (0.0, 1.0)]
INF = math.inf
FULL = TimeSpaceNorm(time_order=2, space_order=2)
# exp(-t) sin(pi x): every derivative in time has the same size, and with s = |sin|_q, c = |cos|_q
# over (0, 1), which are equal, |D^a u(t)|_q = exp(-t) pi^a s.
SINE = {1.0: 2 / math.pi, 2.0: math.sqrt(0.5), 4.0: (3 / 8) ** 0.25, INF: 1.0}


def decaying_sine(x):
    return torch.exp(-x[:, 0]) * torch.sin(math.pi * x[:, 1])


def closed_form(norm):
    m, k, p, q = norm.time_order, norm.space_order, norm.time_exponent, norm.space_exponent
    powers = [math.pi**a for a in range(k + 1)]
    space = max(powers) if q == INF else sum(power**q for power in powers) ** (1 / q)
    time = 1.0 if p == INF else ((m + 1) * (1 - math.exp(-p)) / p) ** (1 / p)
    return time * space * SINE[q]


@pytest.fixture(scope="module")
def grid():
    # |cos| to the first power bends at 1/2: a panel ends there.
    return gauss_legendre(BOX, 24, panels=2)


@pytest.fixture(scope="module")
def sine(grid):
    with torch.no_grad():
        return mixed_derivatives(decaying_sine, grid.points, FULL.indices())


@pytest.mark.parametrize("q", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, 7.0])
@pytest.mark.parametrize(("m", "k"), [(0, 0), (1, 0), (0, 2), (1, 1), (2, 2)])
def test_norms_are_those_of_the_closed_form(m, k, p, q, grid, sine):
    norm = TimeSpaceNorm(time_order=m, space_order=k, time_exponent=p, space_exponent=q)
    expected = torch.tensor(closed_form(norm))
    assert_close(norm(sine, grid), expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize(("p", "q"), [(INF, INF), (INF, 2.0), (2.0, INF)])
@pytest.mark.parametrize("k", [0, 1])
def test_maxima_are_reached_from_below(k, p, q, grid, sine):
    norm = TimeSpaceNorm(time_order=1, space_order=k, time_exponent=p, space_exponent=q)
    found, expected = float(norm(sine, grid)), closed_form(norm)
    # The nearest nodes are within 0.3 % of the ends and of 1/2.
    assert 0.99 * expected < found <= expected + 1e-12


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 6.0, INF])
@pytest.mark.parametrize("q", [1.0, 2.0, 5.0, INF])
def test_triangle_inequality_and_homogeneity(p, q, grid, generator):
    norm = TimeSpaceNorm(time_order=1, space_order=1, time_exponent=p, space_exponent=q)
    shape = grid.points.shape[:2]
    u, v = ({i: torch.randn(shape, generator=generator) for i in norm.indices()} for _ in range(2))
    both = {i: u[i] + v[i] for i in u}
    assert norm(both, grid) <= (norm(u, grid) + norm(v, grid)) * (1 + 1e-12)
    assert_close(norm({i: -3e-9 * u[i] for i in u}, grid), 3e-9 * norm(u, grid))


def test_the_isotropic_norm_leaves_mixed_derivatives_out(grid, sine):
    norm = TimeSpaceNorm(time_order=1, space_order=1, total_order=1)
    assert norm.indices() == ((0, 0), (0, 1), (1, 0))
    assert TimeSpaceNorm(time_order=2, total_order=1).indices() == ((0, 0), (1, 0))
    squares = (1 + 1 + math.pi**2) / 2 * (1 - math.exp(-2)) / 2
    assert_close(norm(sine, grid), torch.tensor(squares).sqrt())


def test_two_dimensions_of_space():
    box = [(0.0, 2.0), (0.0, 1.0), (0.0, 3.0)]
    norm = TimeSpaceNorm(space_order=1, time_exponent=3.0)
    assert norm.indices(2) == ((0, 0, 0), (0, 0, 1), (0, 1, 0))
    # u = t x y: at t the square of the norm is t^2 (1 * 9 + 1 + 3 * 3) / 1 by hand below
    found = norm.distance(lambda x: x.prod(-1), lambda x: 0 * x[:, 0], box, 4)
    space = 1 / 3 * 27 / 3 + 1 / 3 * 3 + 27 / 3 * 1
    assert_close(found, torch.tensor(space**0.5 * (2**4 / 4) ** (1 / 3)))


@pytest.mark.parametrize("exponents", [(2.0, 2.0), (4.0, 2.0), (1.0, 3.0), (INF, 1.0)])
def test_the_gradient_of_the_loss_is_that_of_differences(exponents, grid, sine):
    p, q = exponents
    norm = TimeSpaceNorm(time_order=1, space_order=1, time_exponent=p, space_exponent=q)

    def loss(scale):
        return norm.loss({i: d * (1 + scale) for i, d in sine.items()}, sine, grid)

    scale = torch.tensor(0.3, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(scale), scale)
    # the relative error is the scale, the loss its square
    assert_close(loss(scale).detach(), torch.tensor(0.09))
    assert_close(slope, torch.tensor(0.6))


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0, INF])
def test_a_perfect_student_has_loss_and_gradient_zero(p, grid, sine):
    norm = TimeSpaceNorm(time_order=1, time_exponent=p, space_exponent=3.0)
    student = {i: d.clone().requires_grad_() for i, d in sine.items()}
    loss = norm.loss(student, sine, grid)
    gradients = torch.autograd.grad(loss, [student[i] for i in norm.indices()])
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_small_numbers_to_high_powers_do_not_vanish_in_single_precision(grid):
    norm = TimeSpaceNorm(time_exponent=10.0, space_exponent=10.0)
    small = {(0, 0): torch.full(grid.points.shape[:2], 1e-6, dtype=torch.float32)}
    assert_close(norm(small, grid), torch.tensor(1e-6, dtype=torch.float32), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (4.0, 2.0), (1.0, 4.0)])
def test_the_standard_error_is_the_scatter_of_repeated_draws(p, q, generator):
    norm = TimeSpaceNorm(time_order=1, time_exponent=p, space_exponent=q)
    found, errors = [], []
    for _ in range(200):
        points = monte_carlo(BOX, 60, 40, generator=generator)
        with torch.no_grad():
            derivatives = mixed_derivatives(decaying_sine, points.points, norm.indices())
        found.append(norm(derivatives, points))
        errors.append(norm.standard_error(derivatives, points))
    found, errors = torch.stack(found), torch.stack(errors)
    # 200 draws know their deviation to 5 %, and their mean to a fourteenth of it.
    assert_close(errors.mean(), found.std(), rtol=0.15, atol=0.0)
    assert abs(found.mean() - closed_form(norm)) < 0.35 * found.std()


def test_gauss_legendre_is_exact_for_polynomials():
    grid = gauss_legendre([(1.0, 2.0), (-1.0, 1.0)], [3, 4], panels=[2, 1])
    assert grid.points.shape == (6, 4, 2)
    t, x = grid.points.unbind(-1)
    integral = grid.time_weights @ (grid.space_weights * t**5 * x**6).sum(1)
    assert_close(integral, torch.tensor((2**6 - 1) / 6 * 2 / 7))


@pytest.mark.parametrize("field", ["time_exponent", "space_exponent"])
@pytest.mark.parametrize("value", [0.5, -1.0, math.nan, "2", True])
def test_an_exponent_below_one_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be a number in \[1, inf\], got"):
        TimeSpaceNorm(**{field: value})


def test_what_is_wrong_is_named(grid, sine, generator):
    with pytest.raises(ValueError, match="time_order must be 0, 1 or 2, got 3"):
        TimeSpaceNorm(time_order=3)
    with pytest.raises(ValueError, match="total_order must be a whole number >= 0"):
        TimeSpaceNorm(total_order=-1)
    norm = TimeSpaceNorm(time_order=1)
    with pytest.raises(ValueError, match=r"derivatives must hold index \(1, 0\), got \[\(0, 0\)"):
        norm({(0, 0): sine[0, 0]}, grid)
    with pytest.raises(ValueError, match=r"derivatives\[\(0, 0\)\] must have shape \[48, 48\]"):
        norm({(0, 0): sine[0, 0][:3], (1, 0): sine[1, 0]}, grid)
    with pytest.raises(ValueError, match="target must have a positive norm, got 0"):
        norm.loss(sine, {i: 0 * d for i, d in sine.items()}, grid)
    with pytest.raises(ValueError, match="two random times or more, got 48 times, random=False"):
        norm.standard_error(sine, grid)
    points = monte_carlo(BOX, 4, 3, generator=generator)
    ones = {(0, 0): torch.ones(4, 3)}
    with pytest.raises(ValueError, match="time_exponent must be finite"):
        TimeSpaceNorm(time_exponent=INF).standard_error(ones, points)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        norm.indices(0)


def test_bad_quadratures_are_refused(generator):
    with pytest.raises(ValueError, match=r"box must be .* got \[\(0.0, 1.0\)\]"):
        gauss_legendre(BOX[:1], 4)
    with pytest.raises(ValueError, match="box must be"):
        monte_carlo([(0.0, 1.0), (1.0, 1.0)], 4, 4, generator=generator)
    with pytest.raises(ValueError, match="nodes must be at least 1 on each of 2 axes, got 0"):
        gauss_legendre(BOX, 0)
    with pytest.raises(ValueError, match="times must be at least 1, got 0"):
        monte_carlo(BOX, 0, 4, generator=generator)
    with pytest.raises(ValueError, match=r"time_weights must have shape \[2\], got \[3\]"):
        Quadrature(torch.ones(2, 3, 2), torch.ones(3), torch.ones(2, 3))


def test_mixed_derivatives_are_those_of_the_closed_form(generator):
    def product(x):
        return torch.exp(2 * x[:, 0]) * torch.sin(3 * x[:, 1]) * x[:, 2] ** 4

    x = torch.rand(5, 4, 3, generator=generator)
    t, y, z = x.unbind(-1)
    sines = [torch.sin(3 * y), 3 * torch.cos(3 * y), -9 * torch.sin(3 * y)]
    powers = [z**4, 4 * z**3, 12 * z**2]
    indices = [(j, a, b) for j in range(3) for a in range(3) for b in range(3)]
    for index, found in mixed_derivatives(product, x, indices).items():
        j, a, b = index
        assert_close(found, 2**j * torch.exp(2 * t) * sines[a] * powers[b])


def test_mixed_derivatives_train_and_know_when_nothing_is_left(generator):
    weight = torch.tensor(1.5, requires_grad=True)
    x = torch.rand(6, 2, generator=generator)
    found = mixed_derivatives(lambda x: weight * x[:, 0] * x[:, 1], x, [(1, 1), (2, 0), (2, 2)])
    assert_close(torch.autograd.grad(found[1, 1].sum(), weight)[0], torch.tensor(6.0))
    assert (found[2, 0] == 0).all()
    assert (found[2, 2] == 0).all()
    relu = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    assert (mixed_derivatives(relu, x, [(1, 1)])[1, 1] == 0).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_mixed_derivatives_work_where_nothing_is_recorded(mode, generator):
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.rand(6, 2, generator=generator)
    expected = mixed_derivatives(net, x, [(1, 1), (0, 0)])
    with mode():
        found = mixed_derivatives(net, x.clone(), [(1, 1), (0, 0)])
    for index, derivative in found.items():
        assert not derivative.requires_grad
        assert_close(derivative, expected[index].detach())


def test_mixed_derivatives_refuse_what_does_not_fit():
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"indices must hold 2 orders >= 0 each, got \(1,\)"):
        mixed_derivatives(lambda x: x[:, 0], x, [(1,)])
    with pytest.raises(ValueError, match=r"fn must return \[batch\] = \[4\], got \[4, 2\]"):
        mixed_derivatives(lambda x: x, x, [(0, 0)])
