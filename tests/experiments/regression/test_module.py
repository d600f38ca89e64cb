"""The regression module under every optimizer, and the surface that it leaves."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import optim

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.experiments.common.optimizers import line_search
from lightning_sobolev.experiments.regression.data import LandscapeDataModule
from lightning_sobolev.experiments.regression.mlp import mlp
from lightning_sobolev.experiments.regression.module import RegressionModule
from lightning_sobolev.experiments.regression.surface import FIT, SaveSurface, Surface
from tests.plugin._trainers import trainer

EXACT = SobolevSpec(terms=[SobolevTerm(projection="basis", num_projections=None)])
BOOTH = LandscapeDataModule(
    "booth", 30, batch_size=30, dtype=torch.float64, num_test_points=256, steps_per_epoch=100
)


def fitted(optimizer, steps, *callbacks, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = RegressionModule(mlp(2, width=16, activation="tanh"), optimizer)
    taught = SobolevCallback(BatchTeacher(jacobian="dydx"), EXACT, module="net", doctor=False)
    used = trainer(taught, *callbacks, max_steps=steps, max_epochs=-1, **changes)
    used.fit(module, BOOTH)
    return module, used.test(module, BOOTH, verbose=False)[0]


def test_a_line_search_goes_far_beyond_first_order_steps_and_they_beyond_none():
    _, searched = fitted(line_search, 3)
    _, stepped = fitted(partial(optim.Adam, lr=0.01), 60)
    _, begun = fitted(partial(optim.SGD, lr=1e-12), 1)
    assert searched["test/value_nmse"] < 0.1 * stepped["test/value_nmse"]
    for key in ("test/value_nmse", "test/derivative_nmse"):
        assert stepped[key] < 0.9 * begun[key]


def test_the_stored_surface_is_the_network_in_the_functions_units(tmp_path):
    module, _ = fitted(line_search, 1, SaveSurface(), default_root_dir=tmp_path)
    surface = Surface.load(tmp_path / FIT)
    x0, x1 = surface.x[..., 0], surface.x[..., 1]
    booth = (x0 + 2 * x1 - 7) ** 2 + (2 * x0 + x1 - 5) ** 2
    np.testing.assert_allclose(surface.value, booth, rtol=1e-4, atol=1e-3)
    slopes = np.stack([10 * x0 + 8 * x1 - 34, 8 * x0 + 10 * x1 - 38], -1)
    np.testing.assert_allclose(surface.gradient, slopes, rtol=1e-4, atol=1e-3)

    units = BOOTH.units
    x = torch.from_numpy(surface.x).reshape(-1, 2).double().requires_grad_()
    fit = module.net((x - units.x_mean) / units.x_std) * units.y_std + units.y_mean
    (slope,) = torch.autograd.grad(fit.sum(), x)
    np.testing.assert_allclose(surface.fit.ravel(), fit.detach(), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(surface.fit_gradient.reshape(-1, 2), slope, rtol=1e-4, atol=1e-3)
    assert (tmp_path / "surface.png").stat().st_size > 10_000


def test_a_damaged_surface_is_named(tmp_path):
    path = tmp_path / FIT
    Surface(*(np.arange(18.0).reshape(3, 3, 2) for _ in range(6))).save(path)
    whole = path.read_bytes()
    middle = len(whole) // 3
    for damaged in (b"", b"text", whole[:middle], whole[:middle] + b"\0" * 9 + whole[middle + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{FIT} must hold the surface of a run"):
            Surface.load(path)
    np.savez(path, other=np.zeros(2))
    with pytest.raises(ValueError, match=f"{FIT} must hold the surface of a run"):
        Surface.load(path)


def test_a_surface_needs_a_regression_on_a_landscape(tmp_path):
    module = RegressionModule(mlp(4), line_search)
    other = SimpleNamespace(datamodule=None, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match="must be a LandscapeDataModule, got 'NoneType'"):
        SaveSurface().on_test_end(other, module)
    other.datamodule = LandscapeDataModule("ackley", 4, dim=4)
    SaveSurface().on_test_end(other, module)  # no surface of four inputs: left out
    assert list(tmp_path.iterdir()) == []
