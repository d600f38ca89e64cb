"""The regression module and its optimizers."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.experiments.run.optimizers import LINE_SEARCH, OPTIMIZERS, line_search
from tests.plugin._trainers import trainer

EXACT = SobolevSpec(
    terms=[SobolevTerm(order=order, projection="basis", num_projections=None) for order in (1, 2)]
)


def fitted(optimizer, lr, steps, num_points=30):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp(2, width=16, activation="tanh")
    data = LandscapeDataModule(
        "booth", num_points, batch_size=num_points, dtype=torch.float64, num_test_points=256
    )
    module = RegressionModule(net, lr=lr, max_steps=steps, optimizer=optimizer)
    taught = SobolevCallback(BatchTeacher(jacobian="dydx", hessian="hessian"), EXACT, module="net")
    used = trainer(taught, max_steps=steps, max_epochs=-1)
    used.fit(module, data)
    return used.test(module, data, verbose=False)[0]


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, LINE_SEARCH])
def test_every_optimizer_fits(optimizer):
    if optimizer == "soap":
        pytest.importorskip("pytorch_optimizer")
    before = fitted("sgd", 1e-12, 1)
    after = fitted(optimizer, 1.0 if optimizer == "lbfgs" else 0.01, 20)
    assert after["test/value_nmse"] < 0.9 * before["test/value_nmse"]


def test_a_line_search_goes_far_beyond_first_order_steps():
    searched, stepped = fitted("lbfgs", 1.0, 4), fitted("adam", 0.01, 100)
    assert searched["test/value_nmse"] < 0.1 * stepped["test/value_nmse"]


def test_line_search_descends_at_every_iteration():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp(2, width=8, activation="tanh").double()
        x = torch.rand(20, 2, dtype=torch.float64)
    optimizer = line_search(net.parameters(), iterations=1)

    def closure():
        optimizer.zero_grad()
        loss = (net(x) - x.square().sum(-1)).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(30)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.25 * losses[0]


def test_unknown_optimizers_are_refused():
    with pytest.raises(ValueError, match=r"optimizer must be one of .*'lbfgs'\), got 'newton'"):
        RegressionModule(mlp(2), optimizer="newton")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_arguments_of_the_line_search_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        line_search(mlp(2).parameters(), **changes)


def test_several_processes_do_not_search_along_lines(monkeypatch):
    module = RegressionModule(mlp(2), optimizer="lbfgs")
    module.trainer = trainer()
    monkeypatch.setattr(type(module.trainer), "world_size", 2)
    with pytest.raises(ValueError, match=r"optimizer='lbfgs' needs one process: .* got 2"):
        module.configure_optimizers()


def test_a_search_over_settings_has_test_points_of_its_own():
    first, other = (LandscapeDataModule("booth", 20, test_seed=seed) for seed in (0, 1))
    assert not torch.equal(first.test_points().columns["x"], other.test_points().columns["x"])
    assert_close(first.train_points.columns["x"], other.train_points.columns["x"])
