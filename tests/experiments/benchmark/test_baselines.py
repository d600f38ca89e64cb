"""Every package gets the same points, within limits; what is measured is kept."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.testing import assert_close

from lightning_sobolev.experiments.benchmark import baselines
from lightning_sobolev.experiments.benchmark.baselines import (
    METHODS,
    Cell,
    measure,
    measure_apart,
    run_baselines,
    write_table,
)
from lightning_sobolev.experiments.run.conf import config_folder

SMALL = Cell("styblinski_tang", dim=2, points=20, method="krg", seed=0)


def settings(tmp_path, *overrides):
    few = ["functions=[booth]", "dims=[2]", "points=[20,100]", "methods=[jenn,order1_jenn_time]"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("benchmark", ["study=baselines", *few, f"out={tmp_path}", *overrides])


def test_the_error_is_in_standard_deviations_of_the_function(monkeypatch):
    mean = float(SMALL.tables()[1]["y"].mean())
    monkeypatch.setitem(METHODS, "mean", lambda *_: lambda x: torch.full((len(x),), mean))
    assert_close(measure(replace(SMALL, method="mean"), 1)["rmse"], 1.0, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:y residual is constant")
@pytest.mark.parametrize("method", METHODS)
def test_methods_learn(method, monkeypatch):
    if method in ("jenn", "krg", "gekpls"):
        pytest.importorskip("jenn" if method == "jenn" else "smt")
    monkeypatch.setattr(baselines, "ADAM_STEPS", 200)
    assert measure(Cell("booth", dim=2, points=20, method=method, seed=0), 0.3)["rmse"] < 0.8


def swell(*_):
    return torch.empty(2**40)


def stumble(*_):
    raise KeyError("points")


@pytest.mark.slow
def test_limits_of_time_and_memory_hold():
    pytest.importorskip("smt")
    big = Cell("rosenbrock", dim=10, points=1000, method="krg", seed=0)
    assert measure_apart(SMALL, 1, seconds=60, gib=8)["outcome"] == "fitted"
    assert measure_apart(big, 1, seconds=1, gib=8) == {"outcome": "time"}
    assert measure_apart(big, 1, seconds=60, gib=0.1)["outcome"] in ("memory", "failed")


@pytest.mark.parametrize(("method", "outcome"), [(swell, "memory"), (stumble, "failed")])
def test_a_child_says_why_it_has_no_numbers(method, outcome, monkeypatch):
    monkeypatch.setitem(METHODS, "other", method)
    monkeypatch.setattr(baselines.resource, "setrlimit", lambda *_: None)
    sent = []
    baselines._child(SimpleNamespace(send=sent.append), replace(SMALL, method="other"), 1, 60, 8)
    (answer,) = sent
    assert answer["outcome"] == outcome
    assert answer["error"]


def fake(calls, outcome="fitted"):
    def measured(cell, budget, **_):
        calls.append((cell.points, cell.method, budget))
        numbers = {"rmse": 0.5, "fit_seconds": 0.25, "predict_seconds": 0.01}
        return {"outcome": outcome, **(numbers if outcome == "fitted" else {})}

    return measured


def test_what_is_measured_is_kept_and_jenns_time_is_given(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(baselines, "measure_apart", fake(calls))
    run_baselines(settings(tmp_path))
    assert len(calls) == 2 * 3 * 2
    assert {budget for _, method, budget in calls if method != "jenn"} == {0.25}
    run_baselines(settings(tmp_path))
    assert len(calls) == 12
    run_baselines(settings(tmp_path, "seeds=[0,1,2,7]"))
    assert len(calls) == 16


def test_a_method_that_was_too_slow_is_not_asked_for_more(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(baselines, "measure_apart", fake(calls, "time"))
    path = run_baselines(settings(tmp_path, "seeds=[0]", "limit_seconds=9"))
    assert calls == [(20, "jenn", 3)]
    outcomes = list(pd.read_csv(tmp_path / "peers.csv")["outcome"])
    assert outcomes == ["time", "not tried", "not tried", "not tried"]
    assert ["2", "20", "> 9 s", "not tried"] in cells(path.read_text())


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_the_table_shows_errors_times_and_gaps(tmp_path):
    common = {"function": "booth", "dim": 2, "limit_seconds": 60, "outcome": "fitted"}
    times = {"fit_seconds": 1.5, "predict_seconds": 0.002}
    fits = [("krg", 20, 0, 0.2), ("krg", 20, 1, 0.4), ("jenn", 100, 0, 0.1)]
    records = [
        {**common, **times, "method": method, "points": points, "seed": seed, "rmse": rmse}
        for method, points, seed, rmse in fits
    ]
    cfg = SimpleNamespace(limit_seconds=60, limit_gib=8, budget_seconds=10)
    found = cells(write_table(tmp_path / "peers.md", pd.DataFrame(records), cfg).read_text())
    assert ["2", "20", "0.3 ± 0.1 (1.5)", ""] in found
    assert ["2", "100", "", "0.1 (1.5)"] in found
    assert ["krg", "2", ""] in found


def test_unknown_methods_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"methods must be among .*, got \['forest'\]"):
        run_baselines(settings(tmp_path, "methods=[forest]"))
