"""Who copies whom, against independent references."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy import integrate, special

from lightning_sobolev.experiments.tune.rules import (
    Standing,
    in_order,
    tournament,
    truncation,
    welch,
)

NAN = math.nan


def standing(*scores):
    return [Standing(score) for score in scores]


@pytest.mark.parametrize(("size", "fraction"), [(8, 0.25), (10, 0.2), (20, 0.2), (2, 0.5)])
def test_truncation_moves_between_the_quantiles(size, fraction):
    scores = np.random.default_rng(size).permutation(size).astype(float)
    low = set(np.flatnonzero(scores < np.quantile(scores, fraction)))
    high = set(np.flatnonzero(scores > np.quantile(scores, 1 - fraction)))
    donors = Counter()
    for seed in range(200):
        plan = truncation(standing(*scores), Random(seed), fraction=fraction)
        assert set(plan) == low
        donors.update(plan.values())
    assert set(donors) == high
    expected = 200 * len(low) / len(high)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in donors.values())


def test_truncation_never_takes_more_than_half():
    assert len(truncation(standing(1, 2, 3), Random(0), fraction=0.5)) == 1


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["truncation", "welch", "tournament"])
def test_whoever_diverged_is_replaced_and_never_copied(rule, bad):
    standings = [Standing(s, (s, s + 0.1)) for s in (1.0, bad, bad, 2.0, bad, 3.0)]
    for seed in range(50):
        plan = {
            "truncation": lambda r: truncation(standings, r, fraction=0.2),
            "welch": lambda r: welch(standings, r, level=0.05),
            "tournament": lambda r: tournament(standings, r),
        }[rule](Random(seed))
        assert {1, 2, 4} <= set(plan)
        assert not {1, 2, 4} & set(plan.values())


def test_where_everybody_diverged_nobody_is_copied():
    assert truncation(standing(NAN, NAN), Random(0), fraction=0.5) == {}
    assert tournament(standing(NAN, NAN), Random(0)) == {}
    assert welch(standing(NAN, NAN), Random(0), level=0.05) == {}


def test_tournament_copies_a_better_rival_and_no_other():
    scores = [3.0, 1.0, 2.0, 2.0]
    seen = Counter()
    for seed in range(600):
        plan = tournament(standing(*scores), Random(seed))
        assert all(scores[donor] > scores[loser] for loser, donor in plan.items())
        seen.update(plan.keys())
        assert 0 not in plan
    assert seen[1] == 600  # every rival is better
    assert abs(seen[2] - 200) < 60  # one of three rivals is


def p_value(ours, theirs):
    """Welch's test from its definition; the density of Student's t is integrated."""
    n, m = len(ours), len(theirs)
    a, b = np.var(ours, ddof=1) / n, np.var(theirs, ddof=1) / m
    t = (np.mean(theirs) - np.mean(ours)) / math.sqrt(a + b)
    nu = (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    log_factor = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2)
    factor = math.exp(log_factor) / math.sqrt(nu * math.pi)
    tail, _ = integrate.quad(lambda x: factor * (1 + x * x / nu) ** (-(nu + 1) / 2), abs(t), np.inf)
    return t, 2 * tail


def test_welch_decides_as_the_test_by_its_definition():
    generator = np.random.default_rng(0)
    decided = Counter()
    for _ in range(60):
        ours = generator.normal(0, 1, generator.integers(3, 11))
        theirs = generator.normal(generator.uniform(-1.5, 2.5), 2, generator.integers(3, 11))
        t, p = p_value(ours, theirs)
        pair = [Standing(ours[-1], ours.tolist()), Standing(theirs[-1], theirs.tolist())]
        plan = welch(pair, Random(0), level=0.05)
        assert plan == ({} if p >= 0.05 else {0: 1} if t > 0 else {1: 0})
        decided.update(["copied" if plan else "kept"])
    assert min(decided.values()) > 10


@pytest.mark.parametrize("recent", [(1.0,), (1.0, 1.0)])
def test_without_variance_there_is_no_test(recent):
    pair = [Standing(1.0, recent), Standing(2.0, recent)]
    assert welch(pair, Random(0), level=0.05) == {}


def test_everybody_is_copied_before_being_replaced():
    plan = {1: 0, 2: 1, 3: 1, 4: 3}
    order = in_order(plan)
    assert sorted(order) == [1, 2, 3, 4]
    for loser, donor in plan.items():
        assert donor not in order or order.index(loser) < order.index(donor)
