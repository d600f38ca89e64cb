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


def test_a_front_needs_a_denominator_without_a_root():
    with pytest.raises(ValueError, match=r"sharpness must be above 1, got 1\.0"):
        burgers(sharpness=1.0)
