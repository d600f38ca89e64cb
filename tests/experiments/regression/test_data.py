import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.data import LandscapeDataModule

FUNCTION = "rosenbrock"


def data(**changes):
    return LandscapeDataModule(FUNCTION, **{"num_points": 30, "dtype": torch.float64, **changes})


def test_training_points_have_mean_zero_and_deviation_one():
    columns = data().train_points.columns
    for name in ("x", "y"):
        assert_close(columns[name].mean(0), torch.zeros_like(columns[name][0]))
        assert_close(columns[name].std(0, correction=0), torch.ones_like(columns[name][0]))


@pytest.mark.parametrize("dim", [2, 4])
def test_derivatives_are_the_ones_of_the_standardized_value(dim):
    module = data(dim=dim)
    batch = module.test_points().columns
    x = batch["x"].clone().requires_grad_()
    units = module.units
    value = module.landscape.value(x * units.x_std + units.x_mean)
    scaled = ((value - units.y_mean) / units.y_std).sum()
    (gradient,) = torch.autograd.grad(scaled, x, create_graph=True)
    assert_close(batch["dydx"], gradient.detach())
    rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in gradient.T]
    assert_close(batch["hessian"], torch.stack(rows, dim=1))


def test_seed_decides_the_points():
    again, other = data(seed=0).train_points, data(seed=1).train_points
    assert_close(data(seed=0).train_points.columns["x"], again.columns["x"])
    assert not torch.equal(again.columns["x"], other.columns["x"])


def test_test_points_are_the_same_for_every_seed():
    def original(module):
        return module.test_points().columns["x"] * module.units.x_std + module.units.x_mean

    assert_close(original(data(seed=0)), original(data(seed=1)))


def test_points_lie_in_the_domain():
    module = data(num_points=500)
    x = module.train_points.columns["x"] * module.units.x_std + module.units.x_mean
    assert ((x >= module.low) & (x <= module.high)).all()


def test_loaders_yield_batches():
    module = data(batch_size=8, steps_per_epoch=3, num_test_points=100)
    shapes = [tuple(batch["dydx"].shape) for batch in module.train_dataloader()]
    assert shapes == [(8, 2)] * 3
    assert sum(len(batch["x"]) for batch in module.test_dataloader()) == 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 1}, "num_points must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"num_test_points": 0}, "num_test_points must be at least 2, got 0"),
    ],
)
def test_counts_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        data(**changes)


def test_unknown_function_is_named():
    with pytest.raises(ValueError, match="mountain"):
        LandscapeDataModule("mountain", 10)
