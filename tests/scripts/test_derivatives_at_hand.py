from pathlib import Path

import pytest

from lightning_sobolev.experiments.finance.prices import PriceErrors
from lightning_sobolev.experiments.forces import systems as atomic_systems
from lightning_sobolev.experiments.run.train import run

FINANCE = ("+experiment=finance", "scale=smoke", "steps=4", "num_samples=300")


@pytest.mark.parametrize("sobolev", ["none", "order1"])
def test_finance_reports_prices_in_the_markets_units(composed, sobolev):
    cfg = composed(*FINANCE, f"sobolev={sobolev}")
    metrics = run(cfg)
    assert 0 < metrics["test/price_rmse"] < 100
    assert 0 < metrics["val/delta_rmse"] < 10
    assert (Path(cfg.run_dir) / "prices.png").is_file()


def test_the_weight_is_the_number_of_assets(composed):
    cfg = composed(*FINANCE, "assets=3")
    assert cfg.sobolev.callback.spec.terms[0].weight.end == 3


def test_price_errors_need_a_basket(composed):
    cfg = composed("+experiment=regression", "scale=smoke", "steps=2")
    cfg.task.closing = {"prices": {"_target_": f"{PriceErrors.__module__}.PriceErrors"}}
    with pytest.raises(ValueError, match="on a BasketDataModule, got RegressionModule on"):
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
    monkeypatch.setattr(atomic_systems, "_BURN_IN", 2)
    few = ["num_frames=4", "sizes.smoke={steps:2,pool:4,num_validation_frames:2,num_test_frames:2}"]
    cfg = composed("+experiment=forces", "scale=smoke", *few, *settings)
    cfg.data.root = str(tmp_path / "frames")
    metrics = run(cfg)
    for key in ("test/energy_mae", "test/force_mae", "val/force_mae"):
        assert metrics[key] > 0
    terms = {"train/sobolev/order_1", "train/sobolev/order_2"} & set(metrics)
    assert len(terms) == {"sobolev=none": 0, "energy_weight=0": 1}.get(settings[0], 2)
