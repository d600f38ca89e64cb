"""Who copies whom, against independent references."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
from scipy import integrate, special

from lightning_sobolev.experiments.tune.rules import Truncation, Welch, tournament

NAN = math.nan
RULES = {"truncation": Truncation(0.2), "welch": Welch(), "tournament": tournament}


def standings(*scores):
    return [[score] for score in scores]


@pytest.mark.parametrize(
    ("size", "fraction"), [(8, 0.25), (10, 0.2), (20, 0.2), (2, 0.5), (3, 0.5)]
)
def test_truncation_moves_between_the_quantiles(size, fraction):
    scores = np.random.default_rng(size).permutation(size).astype(float)
    low = set(np.flatnonzero(scores < np.quantile(scores, fraction)))
    high = set(np.flatnonzero(scores > np.quantile(scores, 1 - fraction)))
    donors = Counter()
    for seed in range(200):
        plan = Truncation(fraction)(standings(*scores), Random(seed))
        assert set(plan) == low
        donors.update(plan.values())
    assert set(donors) == high
    expected = 200 * len(low) / len(high)
    assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in donors.values())


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_whoever_diverged_is_replaced_and_never_copied(rule, bad):
    recent = [(s + 0.1, s) for s in (1.0, bad, bad, 2.0, bad, 3.0)]
    for seed in range(50):
        plan = RULES[rule](recent, Random(seed))
        assert {1, 2, 4} <= set(plan)
        assert not {1, 2, 4} & set(plan.values())
    assert RULES[rule](standings(bad, bad), Random(0)) == {}


def test_tournament_copies_a_better_member_and_no_other():
    scores = [3.0, 1.0, 2.0, 2.0]
    seen = Counter()
    for seed in range(600):
        plan = tournament(standings(*scores), Random(seed))
        assert all(scores[donor] > scores[loser] for loser, donor in plan.items())
        seen.update(plan.keys())
        assert 0 not in plan
    assert seen[1] == 600  # every other one is better
    assert abs(seen[2] - 200) < 60  # one of three others is


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
        plan = Welch(0.05)([ours.tolist(), theirs.tolist()], Random(0))
        assert plan == ({} if p >= 0.05 else {0: 1} if t > 0 else {1: 0})
        decided.update(["copied" if plan else "kept"])
    assert min(decided.values()) > 10


@pytest.mark.parametrize("recent", [1, 2])
def test_without_variance_there_is_no_test(recent):
    assert Welch(0.05)([[1.0] * recent, [2.0] * recent], Random(0)) == {}


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        (Truncation, 0.0, r"fraction must be in \(0, 0.5\], got 0.0"),
        (Truncation, 0.6, r"fraction must be in \(0, 0.5\], got 0.6"),
        (Welch, 1.0, r"level must be in \(0, 1\), got 1.0"),
    ],
)
def test_settings_of_rules_are_shares(rule, value, text):
    with pytest.raises(ValueError, match=text):
        rule(value)
