import csv
import math

import pytest

from lightning_sobolev.experiments.report.report import report


@pytest.mark.parametrize(("norm", "optimizer"), [("time_space", "lbfgs"), ("none", "adam")])
def test_an_evolution_is_fitted_and_reported(norm, optimizer, finished, tmp_path):
    chosen = ["+experiment=evolution", "scale=smoke", f"norm={norm}", f"optimizer={optimizer}"]
    chosen += ["lr=1e-2", "steps=150"] if optimizer == "adam" else []
    cfg, metrics = finished(*chosen)
    for name in cfg.test_norms:
        assert math.isfinite(metrics[f"test/{name}"])
    # 1 is a network that says zero; neither budget reaches much, both reach this.
    assert metrics["test/l2_l2"] < 0.6
    report(tmp_path / "runs", tmp_path / "out")
    table = (tmp_path / "out" / "evolution.csv").read_text().splitlines()
    (row,) = csv.DictReader(table)
    assert row["sobolev"] == norm
    assert float(row["test_h1"]) == pytest.approx(metrics["test/h1"], rel=1e-5)
