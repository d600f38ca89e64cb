"""The experiments with derivatives at hand, run as a user runs them, only shorter."""

import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from lightning_sobolev.experiments.forces import systems
from lightning_sobolev.experiments.regression.surface import FIT
from lightning_sobolev.experiments.run.train import run

FINANCE = ("+experiment=finance", "steps=2", "num_samples=300", "sizes.full.num_test_points=64")


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_regression_leaves_numbers_and_a_surface(composed, optimizer):
    chosen = [f"optimizer={optimizer}", "scale=smoke", "steps=2", "sobolev=order1_full"]
    cfg = composed("+experiment=regression", *chosen)
    metrics = run(cfg)
    assert metrics["test/value_nmse"] > 0
    assert metrics["test/derivative_nmse"] > 0
    assert {path.name for path in Path(cfg.run_dir).iterdir()} >= {FIT, "surface.png"}


def test_a_line_search_gets_all_points(composed):
    cfg = composed("+experiment=regression", "optimizer=lbfgs", "num_points=300")
    assert instantiate(cfg.data).batch_size == 300
    assert instantiate(cfg.optimizer)([torch.nn.Parameter(torch.ones(1))]).defaults["lr"] == 1.0


@pytest.mark.parametrize("sobolev", ["none", "order1"])
def test_finance_reports_prices_in_the_markets_units(composed, sobolev):
    cfg = composed(*FINANCE, f"sobolev={sobolev}")
    metrics = run(cfg)
    assert 0 < metrics["test/price_rmse"] < 100
    assert 0 < metrics["val/delta_rmse"] < 10
    assert (Path(cfg.run_dir) / "prices.png").is_file()


def test_finance_weighs_every_derivative_like_the_value(composed):
    cfg = composed(*FINANCE, "assets=3")
    assert cfg.sobolev.callback.spec.terms[0].weight.end == 3


def test_price_errors_need_a_basket(composed):
    prices = "+callbacks.prices={_target_:lightning_sobolev.experiments.finance.prices.PriceErrors}"
    cfg = composed("+experiment=regression", "scale=smoke", "steps=2", prices)
    with pytest.raises(ValueError, match="must be a BasketDataModule, got 'LandscapeDataModule'"):
        run(cfg)


@pytest.mark.parametrize(
    "settings",
    [
        ["sobolev=none"],
        ["energy_weight=0"],
        ["system=morse13", "teacher=morse", "sobolev=hessian_rows", "sobolev.hessian_rows=2"],
    ],
    ids=["energies", "forces", "hessian_rows"],
)
def test_forces_reports_energies_and_forces(composed, settings, tmp_path, monkeypatch):
    pytest.importorskip("ase")
    monkeypatch.setattr(systems, "_BURN_IN", 2)
    few = ["num_frames=4", "sizes.smoke={steps:2,pool:4,num_validation_frames:2,num_test_frames:2}"]
    cfg = composed("+experiment=forces", "scale=smoke", *few, *settings)
    cfg.data.root = str(tmp_path / "frames")
    metrics = run(cfg)
    for key in ("test/energy_mae", "test/force_mae", "val/force_mae"):
        assert metrics[key] > 0
    terms = {"train/sobolev/order_1", "train/sobolev/order_2"} & set(metrics)
    assert len(terms) == {"sobolev=none": 0, "energy_weight=0": 1}.get(settings[0], 2)


@pytest.mark.parametrize(
    "settings", [["norm=time_space"], ["norm=none", "optimizer=adam", "lr=1e-2", "steps=150"]]
)
def test_pde_fits_a_solution_in_a_norm(composed, settings):
    cfg = composed("+experiment=pde", "scale=smoke", *settings)
    metrics = run(cfg)
    for name in cfg.test_norms:
        assert math.isfinite(metrics[f"test/{name}"])
    # 1 is a network that says zero; neither budget reaches much, both reach this.
    assert metrics["test/l2_l2"] < 0.6
