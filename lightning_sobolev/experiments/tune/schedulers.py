"""The rules as schedulers of Ray Tune.

Ray's own classes never replace a member whose score is NaN, and Ray does not save a scheduler. Here
decisions follow from the trials' last results and the seed: a search that was killed goes on alike.
"""

import math
import warnings
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from lightning_sobolev.experiments.tune.rules import Rule, in_order
from lightning_sobolev.experiments.tune.search_space import SearchSpace

# Names in configurations and results of trials.
MEMBER, SCORE, RECENT = "member", "score", "recent"
_TIME = "training_iteration"


class Population(PopulationBasedTraining):
    """Synchronous rounds in which losers copy donors and change a little.

    Args:
        space: What is explored.
        rule: Who copies whom.
        mode: ``"min"`` or ``"max"`` of the score.
        seed: Of all draws; each is a function of seed, round and member.
        factors: One of them multiplies a setting that was copied.
        resample_probability: Probability of a fresh sample instead.
        **options: Of the class above.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        rule: Rule,
        mode: str,
        seed: int,
        factors: Sequence[float] = (0.8, 1.2),
        resample_probability: float = 0.25,
        **options: Any,
    ) -> None:
        if not space:
            raise ValueError("space must hold at least one setting to explore, got none")
        if "hyperparam_bounds" not in options:
            options["hyperparam_mutations"] = {n: tune.uniform(*s.bounds) for n, s in space.items()}
        super().__init__(
            time_attr=_TIME,
            metric=SCORE,
            mode=mode,
            perturbation_interval=1,
            synch=True,  # asynchronously a member may copy one that is behind it
            log_config=False,  # results of members say it all, see history.py
            **options,
        )
        self._space, self._rule, self._seed = space, rule, seed
        self._factors, self._resample = tuple(factors), resample_probability
        self._copies: list[tuple[Trial, Trial]] = []

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a member; a restored one goes on where it stood."""
        super().on_trial_add(tune_controller, trial)
        stored = trial.latest_checkpoint_result
        if SCORE in trial.last_result and stored is not None:
            state = self._trial_state[trial]
            # An interval that was reported and not stored any more is trained again.
            time = min(trial.last_result[_TIME], stored.metrics[_TIME])
            state.last_train_time = state.last_perturbation_time = time
            state.last_score = self._metric_op * trial.last_result[SCORE]
            state.last_result = trial.last_result
            if trial.status == Trial.PENDING:
                # Ray would start it at once, whatever its round, and could not copy it before.
                trial.set_status(Trial.PAUSED)  # type: ignore[no-untyped-call]
        times = [state.last_train_time for state in self._trial_state.values()]
        # Whoever lags behind catches up first; if nobody does, that round is over.
        self._next_perturbation_sync = max(times) + (min(times) == max(times))

    def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
        # Ray is told the donors alone, and stores them as they are.
        known = [t for t, s in self._trial_state.items() if s.last_score is not None]
        running = [t for t in known if t.status not in (Trial.TERMINATED, Trial.ERROR)]
        trials = sorted(running, key=lambda trial: trial.config[MEMBER])
        results: list[Any] = [self._trial_state[trial].last_result for trial in trials]
        standings = [[self._metric_op * x for x in result[RECENT]] for result in results]
        plan = self._rule(standings, self._random(trials[0], "everybody"))
        self._copies = [(trials[loser], trials[donor]) for loser, donor in in_order(plan)]
        return [], list({donor: None for _, donor in self._copies})

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper: list[Trial], lower: list[Trial]
    ) -> None:
        super()._checkpoint_or_exploit(trial, tune_controller, upper, lower)
        if upper and trial is upper[-1]:  # all donors are stored now
            for loser, donor in self._copies:
                super()._checkpoint_or_exploit(loser, tune_controller, [donor], [loser])
                # Else Ray stores the copy later than the result that it followed from, and the
                # new settings with the old weights.
                loser.run_metadata.invalidate_cache()  # type: ignore[no-untyped-call]
                tune_controller._tune_controller._mark_trial_to_checkpoint(loser)

    def _random(self, trial: Trial, member: int | str) -> Random:
        return Random(f"{self._seed} {self._trial_state[trial].last_train_time} {member}")

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        random = self._random(trial, trial.config[MEMBER])
        moved = {}
        for name, setting in self._space.items():
            low, high = setting.bounds
            if random.random() < self._resample:
                moved[name] = random.uniform(low, high)
            else:
                shifted = trial_to_clone.config[name] + math.log(random.choice(self._factors))
                moved[name] = min(max(shifted, low), high)
        return {**trial_to_clone.config, **moved, MEMBER: trial.config[MEMBER]}, {}


class Bandit(Population, PB2):
    """The same, where a Gaussian process chooses the settings of the next interval.

    Source:
        Parker-Holder, Nguyen, Roberts 2020, Provably efficient online hyperparameter optimization
        with population-based bandits (arXiv:2002.02518), as Ray implements it.
    """

    def __init__(self, space: SearchSpace, **options: Any) -> None:
        bounds = {name: list(setting.bounds) for name, setting in space.items()}
        super().__init__(space, hyperparam_bounds=bounds, **options)

    def _save_trial_state(self, state: Any, time: int, result: dict, trial: Trial) -> None:
        super()._save_trial_state(state, time, result, trial)
        if not math.isfinite(state.last_score):  # the process could not be fitted to it
            self.data = self.data.iloc[:-1]

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        # Ray's search for the best bound draws from numpy's global generator.
        np.random.seed(self._random(trial, trial.config[MEMBER]).randrange(2**32))
        with warnings.catch_warnings():
            # Of Ray's own call; gone once Ray calls scipy as it wants to be called.
            warnings.filterwarnings("ignore", ".*`disp` and `iprint` options", DeprecationWarning)
            found, operations = PB2._get_new_config(self, trial, trial_to_clone)
        return {**found, MEMBER: trial.config[MEMBER]}, operations
