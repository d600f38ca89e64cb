"""Ray's scheduler classes with our rules, on a stage of our own: no cluster is started."""

import math
from collections import Counter

import pytest
from ray.tune.experiment import Trial

from lightning_sobolev.experiments.tune.rules import Truncation, Welch, tournament
from lightning_sobolev.experiments.tune.schedulers import Bandit, Population
from lightning_sobolev.experiments.tune.search_space import Setting
from tests.experiments.tune._toy import (
    RATE,
    ROUNDS,
    SMALL,
    SPACE,
    STARTS,
    STEPS,
    Stage,
    climb,
    quality,
    staged,
)

HALF = Truncation(0.5)
RULES = {
    "truncation": lambda seed: Population(SPACE, rule=HALF, mode="max", seed=seed),
    "tournament": lambda seed: Population(SPACE, rule=tournament, mode="max", seed=seed),
    "welch": lambda seed: Population(SPACE, rule=Welch(0.3), mode="max", seed=seed),
    "pb2": lambda seed: Bandit(SPACE, rule=HALF, mode="max", seed=seed),
}
quiet = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("rule", ["truncation", "tournament"])
def test_the_population_reaches_what_grid_search_cannot(rule):
    """The paper's toy problem: both exploit and explore are needed to come to 1.2."""
    grid = max(score for _, _, score in staged(None))
    # Closed form: one coordinate goes to zero, the other one stays almost where it is.
    slow = 0.9 * (1 - 2 * RATE * SMALL) ** (STEPS * ROUNDS)
    assert grid == pytest.approx(1.2 - slow**2, abs=1e-12)
    assert grid < 0.46
    reached = [max(score for *_, score in staged(RULES[rule](seed))) for seed in range(3)]
    assert min(reached) > 1.19


@quiet
@pytest.mark.parametrize("rule", RULES)
def test_decisions_are_a_function_of_the_seed(rule):
    assert staged(RULES[rule](1), rounds=6) == staged(RULES[rule](1), rounds=6)


@quiet
@pytest.mark.parametrize("rule", RULES)
def test_whoever_diverged_goes_on_from_a_donor(rule):
    starts = [{"member": m, "h1": -1.0 - m, "h2": -1.0} for m in range(4)]
    stage = Stage(RULES[rule](0), starts)

    def evaluate(state, config):
        if state == "dead" or (config["member"] in (1, 2) and len(stage.history) in (5, 6)):
            return math.nan, "dead"
        return -config["h1"], [config["member"]]

    for number in range(1, 5):
        stage.round(number, evaluate)
    found = {(number, member): score for number, member, score in stage.history}
    assert math.isnan(found[2, 1])
    assert math.isnan(found[2, 2])
    assert all(math.isfinite(found[number, m]) for number in (3, 4) for m in range(4))


def test_a_member_is_copied_as_it_was_before_it_is_replaced():
    def next_one(standings, _):
        return {i: i + 1 for i in range(len(standings) - 1)}

    starts = [{"member": m, "h1": 0.0, "h2": -0.5 * m} for m in range(4)]
    scheduler = Population(
        SPACE, rule=next_one, mode="max", seed=0, factors=[1.0], resample_probability=0.0
    )
    stage = Stage(scheduler, starts)
    stage.round(1, lambda _, config: (float(config["member"]), f"weights of {config['member']}"))
    states = [trial.checkpoint[0] for trial in stage.trials]
    assert states == ["weights of 1", "weights of 2", "weights of 3", "weights of 3"]
    # Weights and settings come from the same donor; the number is a member's own.
    assert [trial.config["h2"] for trial in stage.trials] == [-0.5, -1.0, -1.5, -1.5]
    assert [trial.config["member"] for trial in stage.trials] == [0, 1, 2, 3]
    assert set(stage.marked) == set(stage.trials[:3])  # for what Ray stores next


def test_settings_are_multiplied_or_sampled_anew_and_stay_inside():
    space = {"lr": Setting(["lr"], 1e-3, 1e-1), "rows": Setting(["rows"], 0.25, 1.0)}
    starts = [{"member": m, "lr": math.log(0.01), "rows": 0.0} for m in range(2)]
    seen = Counter()
    for seed in range(1000):
        stage = Stage(Population(space, rule=HALF, mode="max", seed=seed), starts)
        stage.round(1, lambda _, config: (float(config["member"]), "weights"))
        config = stage.trials[0].config  # the loser's
        ratio = round(space["lr"].value(config["lr"]) / 0.01, 9)
        seen[ratio if ratio in (0.8, 1.2) else "fresh"] += 1
        assert 0.25 <= space["rows"].value(config["rows"]) <= 1.0
    assert abs(seen["fresh"] - 250) < 60
    assert abs(seen[0.8] - 375) < 75


def test_a_restored_search_goes_on_with_the_same_decisions():
    """Ray saves trials and no scheduler: a fresh one must take its place."""
    whole = staged(RULES["truncation"](3))
    stage = Stage(RULES["truncation"](3), STARTS)

    def evaluate(w, config):
        w = climb(w, config)
        return quality(w), w

    for number in range(1, len(whole) // 2 + 1):
        stage.round(number, evaluate)
        assert stage.history[-2:] == [line for line in whole if line[0] == number]
        fresh = RULES["truncation"](3)
        for trial in stage.trials:
            fresh.on_trial_add(stage, trial)
        stage.scheduler = fresh


@pytest.mark.parametrize("reported", [2, 3])  # 3: what was reported last was not stored any more
def test_after_a_kill_in_the_middle_of_a_round_the_others_catch_up_first(reported):
    scheduler = RULES["truncation"](0)
    stage = Stage(None, STARTS)
    for trial, time, stored in zip(stage.trials, (3, reported), (3, 2), strict=True):
        trial.last_result = {"training_iteration": time, "score": 1.0, "recent": [1.0]}
        trial.keep("weights", stored)
        scheduler.on_trial_add(stage, trial)
        assert trial.status == Trial.PAUSED  # Ray starts whoever is pending
    assert scheduler.choose_trial_to_run(stage) is stage.trials[1]


def test_an_exploration_needs_settings():
    with pytest.raises(ValueError, match="space must hold at least one setting"):
        Population({}, rule=tournament, mode="min", seed=0)
