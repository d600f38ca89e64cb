import math

import numpy as np
import pandas as pd
import pytest

from lightning_sobolev.experiments.report.tables import (
    Sweep,
    compare,
    data_factor,
    mean_and_error,
    measures_of,
    ratio,
    summarize,
    write_page,
)

# test KL over the fraction: the baseline follows a power law, so that factors are known exactly
POWER = 0.5


def sweep_of(rows, **view):
    return Sweep.of(pd.DataFrame(rows), **view)


def row(fraction, sobolev, seed, kl, **others):
    before = {"game": "pong", "fraction": fraction, "weight": math.nan}
    return {**before, "sobolev": sobolev, "seed": seed, **others, "test_kl": kl, "seconds": 1.0}


def power_law(factor):
    """The case with derivatives is as good as the baseline with ``factor`` times the data."""
    return [
        row(fraction, sobolev, seed, (1.0 + 0.1 * seed) * (fraction * times) ** -POWER)
        for fraction in (1 / 64, 1 / 8, 1.0)
        for sobolev, times in (("none", 1.0), ("order1", factor))
        for seed in (0, 1, 2)
    ]


def test_means_and_errors_are_those_over_seeds():
    values = [0.25, 0.75, 0.5, math.nan]
    rows = [row(1.0, sobolev, n, v) for sobolev in ("none", "a") for n, v in enumerate(values)]
    table = summarize(sweep_of(rows))
    error = np.std(values[:3], ddof=1) / np.sqrt(3)
    assert table["test_kl"].tolist() == [f"{np.mean(values[:3]):.3g} ± {error:.2g}"] * 2
    assert table["runs"].tolist() == [4, 4]
    assert mean_and_error(pd.Series([2.0])) == "2"
    assert mean_and_error(pd.Series([math.nan])) == ""


def test_ratios_and_data_factors_of_a_power_law():
    table = compare(sweep_of(power_law(4.0)))
    assert table["fraction"].tolist() == [1 / 64, 1 / 8, 1.0]
    # seeds move both alike: the ratio of a pair is always the same
    assert all(cell.startswith("0.5 ± ") and float(cell[6:]) < 1e-15 for cell in table["test_kl"])
    # the baseline never saw four times all the data
    assert table["data factor"].tolist() == ["4.0", "4.0", ""]
    assert "seconds" not in table


@pytest.mark.parametrize("paired", [True, False])
def test_error_of_a_ratio_is_that_of_repeated_draws(paired):
    random, count, seeds = np.random.default_rng(0), 20_000, 40
    shared = random.normal(size=(count, seeds)) * 0.3 if paired else np.zeros((count, seeds))
    over = 2.0 + shared + 0.1 * random.normal(size=(count, seeds))
    under = 5.0 + 2 * shared + 0.2 * random.normal(size=(count, seeds))
    expected = np.std(over.mean(1) / under.mean(1))
    frames = [
        pd.DataFrame({"seed": np.arange(seeds) + shift, "m": values[0]})
        for values, shift in ((over, 0), (under, 0 if paired else 100))
    ]
    mean, error = ratio(*frames, "m")
    assert mean == pytest.approx(over[0].mean() / under[0].mean())
    assert error == pytest.approx(expected, rel=0.3)  # from 40 seeds: 11 % each way is usual


@pytest.mark.parametrize("other", [0.0, math.nan])
def test_no_ratio_to_nothing(other):
    one, nothing = (pd.DataFrame({"seed": [0, 1], "m": [value] * 2}) for value in (1.0, other))
    assert math.isnan(ratio(one, nothing, "m")[0])


def test_what_follows_the_compared_setting_may_differ_in_a_pair_and_nothing_else():
    rows = [row(1.0, "none", 0, 2.0, lr=1e-3), row(1.0, "order1", 0, 1.0, lr=2e-3)]
    assert compare(sweep_of(rows))["test_kl"].tolist() == ["0.5"]
    assert compare(sweep_of([rows[0], rows[1] | {"game": "breakout"}])).empty
    # a rate that was swept pairs runs of the same rate
    table = compare(sweep_of([*rows, row(1.0, "none", 0, 4.0, lr=2e-3)]))
    assert table[["lr", "test_kl"]].to_numpy().tolist() == [[2e-3, "0.25"]]


def test_settings_below_the_compared_one_mean_nothing_in_the_baseline():
    settings = {"sobolev.weight": [1.0, 1.0, 2.0, math.nan], "sobolev": ["none", "a", "a", "none"]}
    numbers = {"seed": 0, "test_kl": [2.0, 4.0, 6.0, 2.0]}
    table = compare(Sweep.of(pd.DataFrame(settings | numbers)))
    assert table[["sobolev.weight", "test_kl"]].to_numpy().tolist() == [[1.0, "2"], [2.0, "3"]]


def test_another_setting_can_be_the_baseline():
    rows = [{"kind": kind, "seed": 0, "test_loss": n} for kind, n in (("plain", 2.0), ("b", 3.0))]
    assert compare(sweep_of(rows)).empty
    assert compare(sweep_of(rows, against="kind=plain"))["test_loss"].tolist() == ["1.5"]
    rows = [{"rate": rate, "seed": 0, "test_loss": 1 + rate} for rate in (0.0, 0.5)]
    assert compare(sweep_of(rows, against="rate=0"))["test_loss"].tolist() == ["1.5"]


def test_data_factor_needs_a_curve_through_the_value():
    curve = pd.Series({0.1: 1.0, 1.0: 0.1})
    assert data_factor(curve, 0.1, 0.1) == pytest.approx(10.0)
    assert data_factor(curve, 0.1, 1.0) == pytest.approx(1.0)
    assert data_factor(curve, 0.1, 10**-0.5) == pytest.approx(10**0.5)
    assert math.isnan(data_factor(curve, 0.1, 2.0))
    assert math.isnan(data_factor(curve[:0], 0.1, 0.5))


@pytest.mark.parametrize(
    ("columns", "count"),
    [
        ("game fraction sobolev seed lr steps test_kl student_return seconds", 3),
        ("val_every test_rows sobolev seed test_accuracy seconds", 2),  # settings with such names
        ("game seed lr steps weight band test_kl seconds", 2),
        ("run game seed actions student_return student_error", 2),
        ("seed test/accuracy influence/odds", 2),
    ],
)
def test_metrics_come_behind_the_settings(columns, count):
    assert measures_of(columns.split()) == columns.split()[-count:]


@pytest.mark.parametrize(
    ("kl", "view", "text"),
    [
        (1.0, {"x": "fractions"}, r"--x must be among game, fraction, .* got fractions"),
        (1.0, {"y": ["test_kk"]}, r"--y must be among test_kl, seconds, got test_kk"),
        (1.0, {"against": "kind=none"}, r"--against must be among game, .* got kind"),
        ("0.0x", {}, r"column test_kl must hold numbers, got '0\.0x'"),
    ],
)
def test_columns_that_are_missing_or_hold_something_else_are_named(kl, view, text):
    with pytest.raises(ValueError, match=text):
        sweep_of([row(1.0, "none", 0, kl)], **view)
    with pytest.raises(ValueError, match=r"must have a metric .* got game, seed, points"):
        measures_of(["game", "seed", "points"])


def test_the_page_says_what_varies_and_what_does_not(tmp_path):
    sweep = sweep_of(power_law(4.0), y=["test/kl"])
    write_page(tmp_path / "pong.md", sweep, source="scripts/report.py pong.csv")
    lines = [" ".join(line.split()) for line in (tmp_path / "pong.md").read_text().splitlines()]
    assert "The same in every run: game pong, weight ." in lines
    assert "| fraction | sobolev | runs | test_kl |" in lines
    assert "| fraction | sobolev | test_kl | data factor |" in lines
