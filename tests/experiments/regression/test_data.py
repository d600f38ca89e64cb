import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.data import LandscapeDataModule


def data(**changes):
    given = {"function": "rosenbrock", "num_points": 30, "dtype": torch.float64}
    return LandscapeDataModule(**{**given, **changes})


def original(module, table):
    return table.columns["x"] * module.units.x_std + module.units.x_mean


def test_training_points_have_mean_zero_and_unit_standard_deviation():
    columns = data().training_points().columns
    for name in ("x", "y"):
        assert_close(columns[name].mean(0), torch.zeros_like(columns[name][0]))
        assert_close(columns[name].std(0, correction=0), torch.ones_like(columns[name][0]))


def test_derivatives_are_the_ones_of_the_standardized_value():
    module = data(dim=4)
    batch = module.test_points().columns
    x = batch["x"].clone().requires_grad_()
    units = module.units
    value = module.landscape.value(x * units.x_std + units.x_mean)
    scaled = ((value - units.y_mean) / units.y_std).sum()
    (gradient,) = torch.autograd.grad(scaled, x, create_graph=True)
    assert_close(batch["dydx"], gradient.detach())
    rows = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in gradient.T]
    assert_close(batch["hessian"], torch.stack(rows, dim=1))


def test_the_seed_decides_training_points_and_no_others():
    first, again, other = data(), data(), data(seed=1)
    x = original(first, first.train_points)
    assert ((x >= first.low) & (x <= first.high)).all()
    assert_close(original(first, first.train_points), original(again, again.train_points))
    assert not torch.equal(original(first, first.train_points), original(other, other.train_points))
    assert_close(original(first, first.test_points()), original(other, other.test_points()))


def test_a_search_over_settings_looks_at_points_of_its_own():
    first, other = data(), data(test_seed=1)
    assert not torch.equal(first.test_points().columns["x"], other.test_points().columns["x"])
    validation = first.validation_points().columns["x"]
    assert not torch.equal(first.test_points().columns["x"], validation)
    assert_close(first.train_points.columns["x"], other.train_points.columns["x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_points": 1}, "num_points must be at least 2, got 1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"function": "mountain"}, "function must be one of .*, got 'mountain'"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        data(**changes)
