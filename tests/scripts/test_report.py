import csv
import json
import math
import statistics

import pytest
from lightning_sobolev.experiments.report.layouts import PONG, layout_of_table
from lightning_sobolev.experiments.run.history import write_curves
from omegaconf import OmegaConf

from lightning_sobolev.experiments.report import figures
from lightning_sobolev.experiments.report.figures import telling_apart
from lightning_sobolev.experiments.report.report import report
from lightning_sobolev.experiments.report.tables import MeanAndError, summarize


def store(folder, metrics, config, choices):
    (folder / ".hydra").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    OmegaConf.save(OmegaConf.create(config), folder / ".hydra" / "config.yaml")
    hydra = {"hydra": {"runtime": {"choices": choices}}}
    OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")


def store_pong(root, *, fractions=(0.125, 1.0), seeds=(0, 1, 2)):
    number = 0
    for fraction in fractions:
        for sobolev in ("none", "order1"):
            for seed in seeds:
                metrics = {
                    "test/kl": 0.02 / fraction + 0.001 * seed + (sobolev == "none"),
                    "test/action_disagreement": 0.1,
                    "test/merged_disagreement": 0.05,
                    "test/derivative_nmse": 0.5,
                    "test/student_return": 10.0 + seed,
                    "seconds_fit": 12.5,
                    "seconds_total": 20.0,
                    "config_hash": "0a1b",
                }
                config = {
                    "name": "distill_pong",
                    "seed": seed,
                    "lr": 1e-3,
                    "steps": 4800,
                    "run_dir": "${hydra:runtime.output_dir}",
                    "data": {"fraction": fraction},
                    "env": {"settings": {"game": "pong"}},
                }
                choices = {"model": "small_cnn", "sobolev": sobolev}
                store(root / str(number), metrics, config, choices)
                number += 1


def store_regression(root):
    for number, (points, sobolev) in enumerate(
        [(20, "none"), (20, "order1"), (100, "none"), (100, "order1")]
    ):
        metrics = {"test/value_nmse": 0.1, "test/derivative_nmse": 0.4, "seconds_fit": 3.0}
        config = {
            "name": "regression",
            "seed": 0,
            "function": "booth",
            "dim": 2,
            "num_points": points,
            "model": {"activation": "relu"},
            "optimizer": "adam",
            "budget": "steps",
            "sobolev": {"order": "0" if sobolev == "none" else "1"},
            "lr": 1e-3 if sobolev == "none" else 3e-3,
        }
        store(root / str(number), metrics, config, {"model": "mlp", "sobolev": sobolev})


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pong_table_has_a_line_for_every_run(tmp_path):
    store_pong(tmp_path / "runs")
    report(tmp_path / "runs", tmp_path / "out")
    lines = read(tmp_path / "out" / "pong.csv")
    assert list(lines[0]) == [
        *("game", "student", "fraction", "sobolev", "seed", "lr", "steps", "test_kl"),
        *("test_action_disagreement", "test_merged_disagreement", "test_derivative_nmse"),
        *("student_return", "seconds"),
    ]
    assert len(lines) == 12
    assert {line["student"] for line in lines} == {"small"}
    assert float(lines[0]["test_kl"]) == pytest.approx(0.02 / 0.125 + 1)


def test_regression_table_has_the_agreed_columns(tmp_path):
    store_regression(tmp_path)
    report(tmp_path)
    lines = read(tmp_path / "regression.csv")
    assert list(lines[0]) == [
        *("function", "dim", "num_points", "activation", "optimizer", "budget", "order"),
        *("sobolev", "seed", "lr"),
        *("test_value_nmse", "test_derivative_nmse", "seconds"),
    ]


def test_orders_with_rates_of_their_own_are_compared(tmp_path):
    store_regression(tmp_path)
    report(tmp_path)
    text = (tmp_path / "regression.md").read_text()
    assert "| num_points | sobolev | test_value_nmse | test_derivative_nmse |" in text
    assert "| 100 | order1 | 1 | 1 |" in text


def test_functions_are_clusters_and_other_settings_panels(tmp_path):
    columns = ["function", "num_points", "order", "sobolev", "seed", "test_value_nmse"]
    layout = layout_of_table(tmp_path / "regression.csv", columns)
    records = [
        dict(zip(columns, (function, points, order, sobolev, 0, 0.5), strict=True))
        for function in ("ackley", "booth")
        for points in (20, 100)
        for order, sobolev in ((0, "none"), (1, "order1"))
    ]
    summary = summarize(layout, records)
    varies = telling_apart(layout, summary)
    assert varies == ["function", "num_points", "sobolev"]
    panels = figures._panels(layout, summary, "sobolev", varies, "test_value_nmse")
    assert list(panels) == ["num_points 20", "num_points 100"]
    for clusters in panels.values():
        assert {name: list(bars) for name, bars in clusters.items()} == {
            "ackley": ["none", "order1"],
            "booth": ["none", "order1"],
        }


def test_averages_are_those_over_seeds(tmp_path):
    store_pong(tmp_path / "runs", fractions=(1.0,))
    report(tmp_path / "runs", tmp_path / "out")
    values = [0.02 + 0.001 * seed for seed in (0, 1, 2)]
    error = statistics.stdev(values) / math.sqrt(3)
    row = f"| order1 | 3 | {statistics.mean(values):.3g} ± {error:.2g} |"
    assert row in (tmp_path / "out" / "pong.md").read_text()


def test_table_alone_gives_the_same_averages_and_figures(tmp_path):
    store_pong(tmp_path / "runs")
    written = report(tmp_path / "runs", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in written}
    for path in written:
        if path.suffix != ".csv":
            path.unlink()
    report(tmp_path / "out" / "pong.csv")
    assert (tmp_path / "out" / "pong.md").read_bytes() == before["pong.md"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(before)


def test_figures_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    store_pong(tmp_path / "pong")
    store_regression(tmp_path / "regression")
    assert (tmp_path / "pong" / "pong.png") in report(tmp_path / "pong")
    written = report(tmp_path / "regression")
    assert {path.name for path in written if path.suffix == ".png"} == {
        "regression_value_nmse.png",
        "regression_derivative_nmse.png",
    }


def test_errors_over_numbers_of_frames_are_curves(tmp_path):
    pytest.importorskip("matplotlib")
    table = tmp_path / "forces.csv"
    lines = [f"{n},{kind},0,{1 / n}" for n in (20, 100) for kind in ("none", "order1")]
    table.write_text("\n".join(["num_frames,sobolev,seed,test_force_mae", *lines]) + "\n")
    assert (tmp_path / "forces.png") in report(table)
    table.write_text("\n".join(["num_frames,sobolev,seed,test_force_mae", *lines[:2]]) + "\n")
    assert (tmp_path / "forces_force_mae.png") in report(table)  # one amount is no curve


def test_validations_are_collected_by_step_and_by_time(tmp_path):
    store_pong(tmp_path / "runs", fractions=(1.0,), seeds=(0, 1))
    folders = sorted(path.parent for path in (tmp_path / "runs").rglob("metrics.json"))
    for number, folder in enumerate(folders[:3]):
        rows = [
            {"step": step, "seconds": 2.0 * step, "val/kl": 1.0 / step + number, "train/loss": 9.0}
            for step in (10, 20, 30)
        ]
        write_curves(folder, rows[:1] if number == 2 else rows)  # one validation is no curve
    written = report(tmp_path / "runs", tmp_path / "out")
    with (tmp_path / "out" / "pong_validations.csv").open() as file:
        lines = list(csv.DictReader(file))
    found = {(int(line["seed"]), float(line["step"])): float(line["value"]) for line in lines}
    assert found == {
        (n, step): pytest.approx(1 / step + n, 1e-5) for n in (0, 1) for step in (10, 20, 30)
    }
    assert {line["measure"] for line in lines} == {"val/kl"}
    assert float(lines[-1]["seconds"]) == 60.0
    assert tmp_path / "out" / "pong_validations.png" in written
    assert (tmp_path / "out" / "pong_validations.png").stat().st_size > 0


def test_figure_labels_leave_a_tuned_learning_rate_out():
    groups = [
        ("pong", "small", fraction, sobolev, lr, 100.0)
        for fraction, lr in ((0.1, 1e-3), (1.0, 2e-3))
        for sobolev in ("none", "order1")
    ]
    assert telling_apart(PONG, groups) == ["fraction", "sobolev"]
    again = [*groups, ("pong", "small", 1.0, "order1", 5e-3, 100.0)]
    assert telling_apart(PONG, again) == ["fraction", "sobolev", "lr"]


def test_runs_of_several_experiments_share_a_general_table(tmp_path):
    store_pong(tmp_path / "runs" / "pong")
    store_regression_once = {"test/value_nmse": None, "seconds_fit": 1.0}
    store(tmp_path / "runs" / "other", store_regression_once, {"name": "mine", "seed": 0}, {})
    report(tmp_path / "runs", tmp_path / "out", by=["data.fraction"])
    lines = read(tmp_path / "out" / "runs.csv")
    assert {line["experiment"] for line in lines} == {"distill_pong", "mine"}
    assert {line["data.fraction"] for line in lines} == {"0.125", "1.0", ""} or {
        line["data.fraction"] for line in lines
    } == {"0.125", "1", ""}


def test_runs_that_differ_in_no_column_are_refused(tmp_path):
    store_regression(tmp_path / "a")
    store_regression(tmp_path / "b")
    with pytest.raises(ValueError, match=r"must differ in one of function.*--by"):
        report(tmp_path)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"finished runs \(metrics.json\) is needed, got none"):
        report(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "pong.csv").write_text("game,student\n")
    with pytest.raises(ValueError, match="at least one line is needed"):
        report(tmp_path / "pong.csv")


def test_unfinished_runs_are_left_out(tmp_path):
    store_regression(tmp_path)
    (tmp_path / "0" / "metrics.json").unlink()
    report(tmp_path)
    assert len(read(tmp_path / "regression.csv")) == 3


def test_estimate_leaves_unknown_numbers_out():
    estimate = MeanAndError.of([1.0, math.nan, 3.0])
    assert (estimate.mean, estimate.count) == (2.0, 2)
    assert estimate.error == pytest.approx(1.0)
    assert str(MeanAndError.of([math.nan])) == ""
    assert str(MeanAndError.of([2.0])) == "2"
