import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.pde.solutions import SOLUTIONS, burgers
from lightning_sobolev.functional import mixed_derivatives

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_closed_form_solves_its_equation(name, generator):
    solution = SOLUTIONS[name]()
    x = torch.rand(200, 2, generator=generator)
    with torch.no_grad():
        found = mixed_derivatives(solution.value, x, solution.residual_indices)
    scale = found[1, 0].abs().max()
    assert_close(solution.residual(found) / scale, torch.zeros(200), atol=1e-12, rtol=0.0)
    ends = torch.stack([x[:, 0], x[:, 1].round()], -1)
    assert_close(solution.value(ends), torch.zeros(200), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("name", SOLUTIONS)
def test_its_derivatives_are_those_of_differences(name, generator):
    value = SOLUTIONS[name]().value
    x = 0.1 + 0.8 * torch.rand(50, 2, generator=generator)
    with torch.no_grad():
        found = mixed_derivatives(value, x, [(1, 0), (0, 1), (1, 1), (0, 2)])
    h = 1e-4
    t, s = torch.tensor([h, 0.0]), torch.tensor([0.0, h])
    differences = {
        (1, 0): (value(x + t) - value(x - t)) / (2 * h),
        (0, 1): (value(x + s) - value(x - s)) / (2 * h),
        (0, 2): (value(x + s) - 2 * value(x) + value(x - s)) / h**2,
        (1, 1): (value(x + t + s) - value(x + t - s) - value(x - t + s) + value(x - t - s))
        / (4 * h**2),
    }
    for index, difference in differences.items():
        assert_close(found[index], difference, rtol=1e-5, atol=1e-5)


def test_a_front_needs_a_denominator_without_a_root():
    with pytest.raises(ValueError, match=r"sharpness must be above 1, got 1\.0"):
        burgers(sharpness=1.0)
