"""The exploit rules as schedulers of Ray Tune (extra ``tune``).

Note [no memory]: Ray does not save a scheduler when it saves an experiment. Whatever a decision
needs comes with the trials (their last results) or from the seed, so that a search that was killed
goes on with the same decisions.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from lightning_sobolev.experiments.tune import rules
from lightning_sobolev.experiments.tune.knobs import Knobs, explore
from lightning_sobolev.experiments.tune.rules import Plan, Standing

# Names in configurations and results of trials.
MEMBER, SCORE, RECENT = "member", "score", "recent"
_TIME = "training_iteration"


class Population(PopulationBasedTraining):
    """Synchronous rounds in which losers copy donors; a subclass says who copies whom.

    A trial's configuration holds ``member``, its number from 0 on, and the position of every knob;
    its results hold ``score`` and ``recent``, its latest scores.

    Args:
        knobs: What is explored.
        mode: ``"min"`` or ``"max"`` of the score.
        seed: Of all draws; each is a function of seed, round and member.
        factors: See :func:`~lightning_sobolev.experiments.tune.knobs.explore`.
        resample_probability: Likewise.
        **options: Of the class above.
    """

    def __init__(
        self,
        knobs: Knobs,
        *,
        mode: str,
        seed: int,
        factors: Sequence[float] = (0.8, 1.2),
        resample_probability: float = 0.25,
        **options: Any,
    ) -> None:
        if not knobs:
            raise ValueError("knobs must hold at least one setting to explore, got none")
        if "hyperparam_bounds" not in options:
            options["hyperparam_mutations"] = {n: tune.uniform(*k.bounds) for n, k in knobs.items()}
        super().__init__(
            time_attr=_TIME,
            metric=SCORE,
            mode=mode,
            perturbation_interval=1,
            synch=True,  # asynchronously a member may copy one that is behind it
            log_config=False,  # results of members say it all, see history.py
            **options,
        )
        self._knobs, self._seed = knobs, seed
        self._factors, self._resample = tuple(factors), resample_probability
        self._plan: dict[Trial, Trial] = {}
        self._recorded: set[Trial] = set()

    @abstractmethod
    def decide(self, standings: Sequence[Standing], random: Random) -> Plan:
        """Return the donor of every loser, by position in ``standings``."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a member; a restored one goes on where it stood."""
        super().on_trial_add(tune_controller, trial)
        if SCORE in trial.last_result:
            state = self._trial_state[trial]
            state.last_train_time = state.last_perturbation_time = trial.last_result[_TIME]
            state.last_score = self._metric_op * trial.last_result[SCORE]
            state.last_result = trial.last_result
        times = [state.last_train_time for state in self._trial_state.values()]
        # Whoever lags behind catches up first; if nobody does, that round is over.
        self._next_perturbation_sync = max(times) + (min(times) == max(times))

    def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
        """Return losers, in the order in which they are replaced, and donors."""
        known = [t for t, s in self._trial_state.items() if s.last_score is not None]
        running = [t for t in known if t.status not in (Trial.TERMINATED, Trial.ERROR)]
        trials = sorted(running, key=lambda trial: trial.config[MEMBER])
        plan = self.decide([self._standing(trial) for trial in trials], self._random(trials[0]))
        self._plan = {trials[loser]: trials[donor] for loser, donor in plan.items()}
        self._recorded = set()
        return [trials[loser] for loser in rules.in_order(plan)], list(set(self._plan.values()))

    def _standing(self, trial: Trial) -> Standing:
        result: Any = self._trial_state[trial].last_result
        recent = [self._metric_op * score for score in result[RECENT]]
        return Standing(recent[-1], recent)

    def _random(self, trial: Trial, *, explores: bool = False) -> Random:
        member = trial.config[MEMBER] if explores else "everybody"
        return Random(f"{self._seed} {self._trial_state[trial].last_train_time} {member}")

    def _checkpoint_or_exploit(
        self, trial: Trial, tune_controller: Any, upper: list[Trial], lower: list[Trial]
    ) -> None:
        """Record donors at the first call of a round; replace losers when they come by as such.

        A member may be both: it is copied as it is before it is replaced.
        """
        own = super()._checkpoint_or_exploit
        if trial in upper and trial not in self._recorded:
            self._recorded.add(trial)
            own(trial, tune_controller, [trial], [])
        elif trial in lower:
            own(trial, tune_controller, [self._plan[trial]], [trial])

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        positions = explore(
            trial_to_clone.config,
            self._knobs,
            self._random(trial, explores=True),
            factors=self._factors,
            resample_probability=self._resample,
        )
        return {**trial_to_clone.config, **positions, MEMBER: trial.config[MEMBER]}, {}


class Truncation(Population):
    """The bottom ``fraction`` copies the top ``fraction``."""

    def __init__(self, knobs: Knobs, *, fraction: float = 0.25, **options: Any) -> None:
        super().__init__(knobs, **options)
        if not 0 < fraction <= 0.5:
            raise ValueError(f"fraction must be in (0, 0.5], got {fraction}")
        self._fraction = fraction

    def decide(self, standings: Sequence[Standing], random: Random) -> Plan:
        """See :func:`~lightning_sobolev.experiments.tune.rules.truncation`."""
        return rules.truncation(standings, random, fraction=self._fraction)


class Welch(Population):
    """A random other member is copied if its recent scores are better by a t-test."""

    def __init__(self, knobs: Knobs, *, level: float = 0.05, **options: Any) -> None:
        super().__init__(knobs, **options)
        if not 0 < level < 1:
            raise ValueError(f"level must be in (0, 1), got {level}")
        self._level = level

    def decide(self, standings: Sequence[Standing], random: Random) -> Plan:
        """See :func:`~lightning_sobolev.experiments.tune.rules.welch`."""
        return rules.welch(standings, random, level=self._level)


class Tournament(Population):
    """A random other member is copied if its latest score is better."""

    def decide(self, standings: Sequence[Standing], random: Random) -> Plan:
        """See :func:`~lightning_sobolev.experiments.tune.rules.tournament`."""
        return rules.tournament(standings, random)


class Bandit(Truncation, PB2):
    """Truncation, and a Gaussian process that chooses the settings of the next interval.

    Source:
        Parker-Holder, Nguyen, Roberts 2020, Provably efficient online hyperparameter optimization
        with population-based bandits (arXiv:2002.02518), as Ray implements it.
    """

    def __init__(self, knobs: Knobs, *, fraction: float = 0.25, **options: Any) -> None:
        bounds = {name: list(knob.bounds) for name, knob in knobs.items()}
        super().__init__(knobs, fraction=fraction, hyperparam_bounds=bounds, **options)

    def _save_trial_state(self, state: Any, time: int, result: dict, trial: Trial) -> None:
        super()._save_trial_state(state, time, result, trial)
        if not math.isfinite(state.last_score):  # the process could not be fitted to it
            self.data = self.data.iloc[:-1]

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict, dict]:
        # Ray's search for the best bound draws from numpy's global generator.
        np.random.seed(self._random(trial, explores=True).randrange(2**32))
        with warnings.catch_warnings():
            # Of Ray's own call; gone once Ray calls scipy as it wants to be called.
            warnings.filterwarnings("ignore", ".*`disp` and `iprint` options", DeprecationWarning)
            found, operations = PB2._get_new_config(self, trial, trial_to_clone)
        return {**found, MEMBER: trial.config[MEMBER]}, operations
