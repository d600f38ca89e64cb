"""The study's problems, its cells and its counts."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.foresight import cells as source
from lightning_sobolev.experiments.foresight import study
from lightning_sobolev.experiments.foresight.cells import Cell, Problem, cells
from lightning_sobolev.experiments.foresight.study import curve, measure, run_foresight
from lightning_sobolev.experiments.run.conf import config_folder

RESULTS = config_folder().parent / "docs" / "results"


def test_diffusion_with_a_constant_coefficient_is_a_parabola():
    found = source._diffusion(2.0, torch.zeros(4, dtype=torch.float64))
    at = torch.arange(4, 33, 4, dtype=torch.float64) / 33
    assert_close(found, at * (1 - at) / 2)


@pytest.mark.parametrize("name", ["ripples", "diffusion"])
def test_derivatives_are_those_of_the_values(name):
    problem = Problem(name, 4, 6, level=1.0)
    table, _ = problem.draw(0)
    function = getattr(source, f"_{name}")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand if name == "ripples" else torch.randn
    x = drawn(6 + source.TEST_POINTS, 4, generator=generator, dtype=torch.float64)[:6]
    x = 2 * x - 1 if name == "ripples" else x
    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    one = x[0]
    slope = torch.stack([function(1.0, one + h) - function(1.0, one - h) for h in step], -1) / 2e-5
    y = torch.stack([function(1.0, point) for point in x])
    units = x.std(0, correction=0) / y.std(0, correction=0)[..., None]
    assert_close(table["dydx"][0], slope * units, rtol=1e-4, atol=1e-4)


def test_noise_is_in_units_of_its_column():
    clean, noisy = (
        Problem("booth", 2, 2000, slope_noise=share).labels(0)[2] for share in (0.0, 0.5)
    )
    share = (noisy - clean).square().mean(0) / clean.square().mean(0)
    assert_close(share, torch.full((2,), 0.25, dtype=torch.float64), rtol=0.1, atol=0)


def labels(frequency):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(60, 2, generator=generator, dtype=torch.float64)
        return x, torch.sin(frequency * x).sum(1), frequency * torch.cos(frequency * x)

    return draw


def cell(name, frequency, ratios, twin=math.nan):
    place = ("made", name, 2, 60, "")
    return Cell(*place, labels(frequency), lambda: pd.Series(ratios).map(math.log), twin)


MADE = [
    cell("waves", 900.0, [2.0, 3.0], twin=2.5),
    cell("bowl", 1.0, [0.5, 0.4], twin=0.6),
    cell("scattered", 1.0, [4.0, 0.5]),
    cell("missed", 1.0, [1.3, 1.3]),
]


def test_harm_is_a_clear_ratio_beyond_its_scatter():
    found = [measure(one) for one in MADE]
    assert [row["outcome"] for row in found] == ["harmed", "helped", "level", "harmed"]
    assert_close(found[0]["ratio"], math.sqrt(6.0))
    assert found[0]["T"] < 0 < found[1]["T"]


def test_a_curve_goes_from_the_loudest_alarm_to_the_faintest():
    rates = curve(pd.Series([3.0, 2.0, 1.0]), pd.Series([True, False, True]))
    assert rates["detected"].tolist() == [0.0, 0.5, 0.5, 1.0]
    assert rates["false"].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_a_second_call_measures_what_is_missing(tmp_path, monkeypatch):
    cfg = SimpleNamespace(out=str(tmp_path), results="none", frames="none", fresh=False)
    more = [one._replace(source="regression") for one in MADE]
    for known in (more[:2], [*more, *MADE]):
        monkeypatch.setattr(study, "cells", lambda *_, known=known: iter(known))
        path = run_foresight(cfg)
    frame = pd.read_csv(path)
    assert frame["problem"].tolist() == [one.problem for one in (*more, *MADE)]
    text = path.with_suffix(".md").read_text()
    assert "| regression | 1 of 2 " in text
    assert "missed" in text.split("## Missed")[1]
    assert (tmp_path / "foresight_roc.png").stat().st_size > 0


def test_committed_cells_come_from_the_tables(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "problems", lambda: iter(()))
    found = {one[:5]: one for one in cells(RESULTS, tmp_path)}
    assert len(found) == 126 + 14 + 15 + 6 + 12 + 3
    frame = pd.read_csv(RESULTS / "foresight.csv", keep_default_na=False)
    kept = frame[frame["source"] != "trained"][list(study._KEYS)]
    assert set(found) == {tuple(row) for row in kept.itertuples(index=False)}
    errors = pd.read_csv(RESULTS / "regression.csv").query(
        "function == 'ackley' and num_points == 20 and activation == 'tanh' and optimizer == 'adam'"
    )
    errors = errors.set_index(["sobolev", "seed"])["test_value_nmse"]
    expected = (errors["order1"] / errors["none"]).map(math.log).mean()
    assert_close(found["regression", "ackley", 2, 20, "tanh adam"].logs().mean(), expected)


def test_derivatives_teach_the_small_network(monkeypatch):
    monkeypatch.setattr(source, "STEPS", 150)
    problem = Problem("booth", 2, 50)
    assert problem.error(0, True) < problem.error(0, False) < 1.0
