import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.functional import central_differences, neighbor_derivatives
from tests._reference import dense_jacobian


@pytest.fixture
def rand(generator):
    return lambda *shape: torch.rand(shape, generator=generator)


def wavy(x):
    a, b = x.flatten(1).sin().sum(1), x.flatten(1).square().sum(1)
    return torch.stack([a * b, a.exp()], 1)[:, :, None]


def test_the_jacobian_is_that_of_automatic_differentiation(rand):
    x = rand(6, 2, 2)
    found = central_differences(wavy, x)
    assert_close(found.derivative, dense_jacobian(wavy, x), rtol=1e-8, atol=1e-8)
    assert found.derivative.shape == found.error.shape == (6, 2, 1, 2, 2)


def test_given_directions_are_followed(rand):
    x, v = rand(6, 3), rand(2, 6, 3)
    v[1, 2] = 0.0
    found = central_differences(wavy, x, v)
    for p in range(2):
        expected = torch.func.jvp(wavy, (x,), (v[p],))[1]
        assert_close(found.derivative[p], expected, rtol=1e-8, atol=1e-8)


def test_the_error_falls_with_the_square_of_the_step(rand):
    x = rand(20, 2)
    exact = dense_jacobian(wavy, x)
    errors = [
        (central_differences(wavy, x, noise=noise).derivative - exact).norm()
        for noise in (8e-6, 1e-6)  # steps of 0.02 and 0.01
    ]
    assert 3.9 < errors[0] / errors[1] < 4.1


# Those with kinks or ripples are not smooth on the scale of a step.
def test_the_stated_error_is_of_the_size_of_the_true_one(rand):
    x = 4 * rand(200, 2) - 2
    found = central_differences(wavy, x)
    true = (found.derivative - dense_jacobian(wavy, x)).abs()
    assert (true <= 3 * found.error).double().mean() > 0.98
    assert found.error.norm() < 1e-7 * found.derivative.norm()


def test_a_coarse_simulator_wants_its_noise_told(rand):
    def coarse(x):
        return ((wavy(x) + 1.0) * 1e5).round() / 1e5

    x = rand(50, 2)
    exact = dense_jacobian(wavy, x)
    blind = central_differences(coarse, x).derivative - exact
    told = central_differences(coarse, x, noise=1e-5)
    true = (told.derivative - exact).abs()
    assert true.norm() < 1e-2 * blind.norm()
    assert (true <= 3 * told.error).double().mean() > 0.98


def test_units_of_the_inputs_do_not_matter(rand):
    x, units = rand(9, 2), torch.tensor([1e-6, 1e9])
    plain = central_differences(wavy, x).derivative
    other = central_differences(lambda z: wavy(z / units), x * units).derivative
    assert_close(other * units, plain, rtol=1e-7, atol=1e-7)


def test_what_makes_no_step_is_refused(rand):
    x = rand(4, 2)
    with pytest.raises(ValueError, match=r"noise must be in \(0, 1\), got 0"):
        central_differences(wavy, x, noise=0.0)
    with pytest.raises(ValueError, match="scale must be positive"):
        central_differences(wavy, x, scale=-1.0)
    with pytest.raises(ValueError, match=r"tangents must have shape \[proj, 4, 2\]"):
        central_differences(wavy, x, rand(4, 2))


@pytest.mark.parametrize("degree", [1, 2])
def test_polynomials_of_its_degree_are_met_exactly(degree, rand):
    x = torch.tensor([1e4, 1e-3, 1.0]) * rand(60, 3)
    z = x / torch.tensor([1e4, 1e-3, 1.0])

    def polynomial(z):
        plane = torch.stack([z @ torch.tensor([1.0, -2.0, 3.0]), z[:, 0]], 1)
        return plane if degree == 1 else plane + torch.stack([z[:, 0] * z[:, 1], z[:, 2] ** 2], 1)

    found = neighbor_derivatives(x, polynomial(z), degree=degree)
    exact = dense_jacobian(polynomial, z) / torch.tensor([1e4, 1e-3, 1.0])
    assert_close(found.derivative, exact, rtol=1e-7, atol=1e-7)
    assert found.evaluations == 0


@pytest.mark.parametrize(("degree", "least"), [(1, 1.7), (2, 3.2)])
def test_its_error_falls_with_the_distance_to_the_power_of_its_degree(degree, least, rand):
    def error(size):
        x = rand(size, 2)
        y = (3 * x[:, 0]).sin() * (2 * x[:, 1]).exp()
        exact = torch.stack(
            [3 * (3 * x[:, 0]).cos() * (2 * x[:, 1]).exp(), 2 * y], 1
        )  # four times the points: half the distance
        return (neighbor_derivatives(x, y, degree=degree).derivative - exact).abs().median()

    assert error(500) / error(2000) > least


def test_the_stated_error_is_that_of_noise(rand, generator):
    x = rand(400, 2)
    y = x @ torch.tensor([1.0, 2.0]) + 0.01 * torch.randn(400, generator=generator)
    found = neighbor_derivatives(x, y, num_neighbors=12)
    ratio = (found.derivative - torch.tensor([1.0, 2.0])).abs() / found.error
    assert 0.4 < ratio.median() < 1.3  # 0.69 for a normal distribution; the point has noise too


def test_points_on_a_line_tell_nothing_of_what_is_across(rand):
    t = rand(30)
    x = torch.stack([t, 2 * t], 1)
    assert neighbor_derivatives(x, t).derivative.isnan().all()


def test_chunks_change_nothing(rand):
    x = rand(50, 2)
    whole = neighbor_derivatives(x, wavy(x))
    assert whole.derivative.shape == (50, 2, 1, 2)
    assert_close(neighbor_derivatives(x, wavy(x), chunk=7).derivative, whole.derivative)


def test_too_few_neighbors_are_refused(rand):
    x = rand(5, 2)
    with pytest.raises(ValueError, match="above the 5 coefficients and below the 5 rows, got 10"):
        neighbor_derivatives(x, x[:, 0], degree=2)
    with pytest.raises(ValueError, match="degree must be 1 or 2, got 3"):
        neighbor_derivatives(x, x[:, 0], degree=3)
