import math
import statistics

import pytest
import torch

from lightning_sobolev.experiments.report.comparison import (
    compare,
    comparison_lines,
    data_factor,
    ratio,
)
from lightning_sobolev.experiments.report.layouts import PONG, REGRESSION
from lightning_sobolev.experiments.report.tables import MeanAndError, summarize

# test KL over the fraction: the baseline follows a power law, so that factors are known exactly
POWER = 0.5


def record(fraction, sobolev, seed, kl, **others):
    return {
        **dict.fromkeys(PONG.keys, "x"),
        **dict.fromkeys(PONG.measures, 0.5),
        **{"fraction": fraction, "sobolev": sobolev, "seed": seed, "test_kl": kl, **others},
    }


def records(factor=4.0):
    """The case with derivatives is as good as the baseline with ``factor`` times the data."""
    return [
        record(fraction, sobolev, seed, (1.0 + 0.1 * seed) * (fraction * times) ** -POWER)
        for fraction in (1 / 64, 1 / 8, 1.0)
        for sobolev, times in (("none", 1.0), ("order1", factor))
        for seed in (0, 1, 2)
    ]


def compared(lines):
    return compare(PONG, summarize(PONG, lines))


def test_ratios_and_data_factors_of_a_power_law():
    comparisons = compared(records(factor=4.0))
    assert [c.case["fraction"] for c in comparisons] == [1 / 64, 1 / 8, 1.0]
    for one in comparisons:
        assert one.ratios["test_kl"].mean == pytest.approx(4.0**-POWER)
        assert one.ratios["test_kl"].count == 3
    assert [c.data_factor for c in comparisons[:2]] == pytest.approx([4.0, 4.0])
    # the baseline never saw four times all the data
    assert math.isnan(comparisons[2].data_factor)


def test_error_of_a_ratio_is_that_of_repeated_draws():
    over, under = MeanAndError(2.0, 0.02, 3), MeanAndError(5.0, 0.04, 3)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2, 100_000, generator=generator, dtype=torch.float64)
    draws = (2.0 + 0.02 * normal[0]) / (5.0 + 0.04 * normal[1])
    assert ratio(over, under).mean == 0.4
    assert ratio(over, under).error == pytest.approx(statistics.stdev(draws.tolist()), rel=0.01)


@pytest.mark.parametrize("other", [MeanAndError(0.0, 0.0, 3), MeanAndError(math.nan, math.nan, 0)])
def test_no_ratio_to_nothing(other):
    assert ratio(MeanAndError(1.0, 0.1, 3), other).count == 0
    assert str(ratio(other, MeanAndError(1.0, 0.1, 3))) == ""


def test_scores_and_seconds_are_no_errors():
    (one, *_) = compared(records())
    assert set(one.ratios) == {m for m in PONG.measures if m.startswith("test_")}


def test_learning_rates_may_differ_within_a_pair_and_nothing_else():
    lines = [record(1.0, "none", 0, 2.0, lr=1e-3), record(1.0, "order1", 0, 1.0, lr=2e-3)]
    assert compared(lines)[0].ratios["test_kl"].mean == 0.5
    lines[1]["student"] = "another"
    assert compared(lines) == []


def test_two_baselines_of_one_case_are_none():
    lines = [record(1.0, "none", 0, 2.0, lr=lr) for lr in (1e-3, 2e-3)]
    assert compared([*lines, record(1.0, "order1", 0, 1.0, lr=1e-3)]) == []


def test_data_factor_needs_a_curve_through_the_value():
    curve = [(0.1, 1.0), (1.0, 0.1)]
    assert data_factor(curve, 0.1, 0.1) == pytest.approx(10.0)
    assert data_factor(curve, 0.1, 1.0) == pytest.approx(1.0)
    assert math.isnan(data_factor(curve, 0.1, 2.0))
    assert math.isnan(data_factor([], 0.1, 0.5))


def test_lines_show_what_differs():
    lines = comparison_lines(compared(records()))
    header = next(line for line in lines if line.startswith("| "))
    assert header.startswith("| fraction | sobolev | test_kl |")
    assert header.endswith("| data factor |")
    assert lines[-1].startswith("| 1 | order1 | 0.5 ± ")
    assert comparison_lines([]) == []
    assert compare(REGRESSION, summarize(REGRESSION, [])) == []
