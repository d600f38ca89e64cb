import math

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import TimeSpaceNorm
from lightning_sobolev.functional import Quadrature, gauss_legendre
from lightning_sobolev.metrics import TimeSpaceError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("p", [1.0, 4.0, math.inf])
@pytest.mark.parametrize("q", [2.0, math.inf])
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


def test_a_missing_derivative_is_named():
    grid = gauss_legendre([(0.0, 1.0), (0.0, 1.0)], 2)
    values = {(0, 0): torch.ones(2, 2)}
    metric = TimeSpaceError(TimeSpaceNorm(space_order=1))
    with pytest.raises(ValueError, match=r"student must hold .* got none of \[\(0, 1\)\]"):
        metric.update(values, values, grid)
