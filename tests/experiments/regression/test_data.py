import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.loading import OrderedRows, ShuffledRows, Table

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


def test_batches_are_full_and_see_every_row_equally_often():
    batches = list(ShuffledRows(12, 4, 6, seed=0))
    assert [len(rows) for rows in batches] == [4] * 6
    assert_close(torch.cat(batches).bincount(), torch.full((12,), 2))


def test_batches_go_on_after_those_that_were_given():
    rows = ShuffledRows(12, 4, 5, seed=0)
    whole = [batch.tolist() for _ in range(2) for batch in rows]
    resumed = ShuffledRows(12, 4, 5, seed=0)
    resumed.given = 7
    assert [batch.tolist() for batch in resumed] == whole[7:]


def test_a_small_table_is_its_own_batch():
    (rows,) = ShuffledRows(5, 100, 1, seed=0)
    assert sorted(rows.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampler", ["shuffled", "ordered"])
def test_processes_share_the_rows_out(sampler):
    def rows(**share):
        if sampler == "shuffled":
            return torch.cat(list(ShuffledRows(12, 6, 2, seed=3, **share)))
        return torch.cat(list(OrderedRows(12, 6, **share)))

    shares = [rows(rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(torch.cat(shares).tolist()) == sorted(rows().tolist())


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


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one common length"):
        Table({"x": torch.zeros(3), "y": torch.zeros(4)})
