import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import TimeSpaceNorm
from lightning_sobolev.experiments.common.optimizers import line_search
from lightning_sobolev.experiments.pde.data import PDEDataModule, derivatives_of, quadrature_of
from lightning_sobolev.experiments.pde.module import PDEModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.functional import mixed_derivatives


def test_training_points_are_one_time_a_row_and_their_own_in_every_seed():
    first, again, other = (
        PDEDataModule("heat", num_times=5, num_places=7, seed=seed).training_points()
        for seed in (1, 1, 2)
    )
    points = first.columns["points"]
    assert points.shape == (5, 7, 2)
    assert (points[..., 0] == points[:, :1, 0]).all()
    assert_close(points, again.columns["points"])
    assert not torch.equal(points, other.columns["points"])


@pytest.mark.parametrize("rule", ["monte_carlo", "gauss_legendre"])
def test_a_batch_holds_the_solution_and_a_quadrature_of_the_box(rule):
    data = PDEDataModule("burgers", rule=rule, dtype=torch.float64)
    batch = data.training_points().columns
    quadrature, found = quadrature_of(batch), derivatives_of(batch)
    values = data.solution.value(quadrature.points.reshape(-1, 2)).reshape(8, 16)
    assert_close(found[0, 0], values)
    # The equation ties the derivatives of a row together.
    assert_close(data.solution.residual(found), torch.zeros(8, 16).double(), atol=1e-10, rtol=0.0)
    assert_close(quadrature.time_weights.sum(), torch.tensor(1.0).double())
    assert_close(quadrature.space_weights.sum(1), torch.ones(8).double())


def test_derivatives_are_those_in_the_units_of_the_box():
    torch.manual_seed(0)
    net = mlp(2, width=8, activation="tanh")
    module = PDEModule(
        net,
        line_search,
        norm=TimeSpaceNorm(),
        test_norms={"h1": TimeSpaceNorm(time_order=1, space_order=1)},
        box=[(0.0, 2.0), (-1.0, 3.0)],
    ).double()
    x = torch.rand(9, 2, dtype=torch.float64)
    found = mixed_derivatives(module, x, [(1, 0), (1, 1)])
    h, t = 1e-5, torch.tensor([1e-5, 0.0], dtype=torch.float64)
    assert_close(found[1, 0], (module(x + t) - module(x - t)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match=r"problem must be one of \('heat', 'burgers'\), got 'x'"):
        PDEDataModule("x")
    with pytest.raises(ValueError, match="rule must be 'monte_carlo' or 'gauss_legendre'"):
        PDEDataModule("heat", rule="simpson")
