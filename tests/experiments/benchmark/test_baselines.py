import csv

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.testing import assert_close

from lightning_sobolev.experiments.benchmark.baselines import running, worker
from lightning_sobolev.experiments.benchmark.baselines.networks import METHODS
from lightning_sobolev.experiments.benchmark.baselines.problems import Problem
from lightning_sobolev.experiments.benchmark.baselines.running import run_peers
from lightning_sobolev.experiments.benchmark.baselines.showing import write_table
from lightning_sobolev.experiments.benchmark.baselines.worker import Limits, measure, measure_apart
from lightning_sobolev.experiments.run.conf import config_folder

SMALL = Problem(function="styblinski_tang", dim=2, points=20, seed=0)
ROOMY = Limits(seconds=60, gib=8)


def settings(tmp_path, *overrides):
    few = ["functions=[booth]", "dims=[2]", "points=[20,100]", "methods=[jenn,order1_jenn_time]"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("benchmark", ["study=baselines", *few, f"out={tmp_path}", *overrides])


def test_every_method_gets_the_same_points():
    table, again = SMALL.table(), SMALL.table()
    assert_close(table["x"], again["x"])
    assert_close(table["y"].std(correction=0), torch.ones((), dtype=torch.float64))
    assert len(SMALL.test_table()["x"]) == 2000


def test_the_error_is_in_deviations_of_the_function(monkeypatch):
    mean = float(SMALL.test_table()["y"].mean())
    monkeypatch.setitem(METHODS, "mean", lambda *_: lambda x: torch.full((len(x),), mean))
    assert_close(measure(SMALL, "mean", budget=1)["rmse"], 1.0, rtol=1e-6, atol=0)


@pytest.mark.filterwarnings("ignore:y residual is constant")
@pytest.mark.parametrize("method", ["jenn", "krg", "gekpls"])
def test_packages_learn(method):
    pytest.importorskip("jenn" if method == "jenn" else "smt")
    found = measure(Problem(function="booth", dim=2, points=20, seed=0), method, budget=1)
    assert found["rmse"] < 0.6


@pytest.mark.parametrize("method", [name for name in METHODS if name[:5] in ("value", "order")])
def test_networks_learn(method, monkeypatch):
    monkeypatch.setattr(
        "lightning_sobolev.experiments.benchmark.baselines.networks._ADAM_STEPS", 200
    )
    found = measure(Problem(function="booth", dim=2, points=20, seed=0), method, budget=0.3)
    assert found["rmse"] < 0.8


def swell(*_):
    return torch.empty(2**40)


def stumble(*_):
    raise KeyError("points")


@pytest.mark.slow
def test_limits_of_time_and_memory_hold():
    pytest.importorskip("smt")
    quick = Limits(seconds=1, gib=8)
    assert measure_apart(SMALL, "krg", budget=1, limits=ROOMY)["outcome"] == "fitted"
    big = Problem(function="rosenbrock", dim=10, points=1000, seed=0)
    assert measure_apart(big, "krg", budget=1, limits=quick) == {"outcome": "time"}
    small = Limits(seconds=60, gib=0.1)
    assert measure_apart(big, "krg", budget=1, limits=small)["outcome"] in ("memory", "failed")


@pytest.mark.parametrize(
    ("method", "outcome"), [(swell, "memory"), (stumble, "failed")], ids=["swell", "stumble"]
)
def test_a_child_says_why_it_has_no_numbers(method, outcome, monkeypatch):
    monkeypatch.setitem(METHODS, "other", method)
    monkeypatch.setattr(worker.resource, "setrlimit", lambda *_: None)
    sent = []
    sender = type("Sender", (), {"send": staticmethod(sent.append)})
    worker._child(sender, SMALL, "other", 1.0, ROOMY)
    (answer,) = sent
    assert answer["outcome"] == outcome
    assert answer["error"]


def fake(calls, outcome=None):
    def measured(problem, method, *, budget, limits):
        assert limits.seconds > 0
        calls.append((problem.points, method, budget))
        if outcome and outcome(problem, method):
            return {"outcome": outcome(problem, method)}
        return {"outcome": "fitted", "rmse": 0.5, "fit_seconds": 0.25, "predict_seconds": 0.01}

    return measured


def test_what_is_measured_is_kept_and_jenns_time_is_given(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(running, "measure_apart", fake(calls))
    run_peers(settings(tmp_path))
    assert len(calls) == 2 * 3 * 2
    assert {budget for _, method, budget in calls if method != "jenn"} == {0.25}
    run_peers(settings(tmp_path))
    assert len(calls) == 12
    run_peers(settings(tmp_path, "seeds=[0,1,2,7]"))
    assert len(calls) == 16


def test_more_points_are_not_tried_where_fewer_were_too_many(tmp_path, monkeypatch):
    calls = []
    slow = fake(calls, lambda _, method: "time" if method == "jenn" else None)
    monkeypatch.setattr(running, "measure_apart", slow)
    path = run_peers(settings(tmp_path, "seeds=[0]", "limit_seconds=9"))
    assert calls == [(20, "jenn", 3)]
    with (tmp_path / "peers.csv").open() as file:
        outcomes = [row["outcome"] for row in csv.DictReader(file)]
    assert outcomes == ["time", "not tried", "not tried", "not tried"]
    assert "| 2 | 20 | > 9 s | not tried |" in path.read_text()


def test_the_table_shows_errors_times_and_gaps(tmp_path):
    common = {"function": "booth", "dim": 2.0, "points": 20.0, "limit_seconds": 60.0}
    fitted = {"outcome": "fitted", "fit_seconds": 1.5, "predict_seconds": 0.002}
    records = [
        {**common, **fitted, "method": "krg", "seed": 0.0, "rmse": 0.2},
        {**common, **fitted, "method": "krg", "seed": 1.0, "rmse": 0.4},
        {**common, **fitted, "method": "jenn", "seed": 0.0, "rmse": 0.1, "points": 100.0},
    ]
    cfg = type("Cfg", (), {"limit_seconds": 60, "limit_gib": 8, "budget_seconds": 10})
    text = write_table(tmp_path / "peers.md", records, cfg).read_text()
    assert "| 2 | 20 | 0.3 ± 0.1 (1.5) |  |" in text
    assert "| 2 | 100 |  | 0.1 (1.5) |" in text
    assert "| krg | 2 |  |" in text


def test_unknown_methods_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"methods must be among .*, got \['forest'\]"):
        run_peers(settings(tmp_path, "methods=[forest]"))
