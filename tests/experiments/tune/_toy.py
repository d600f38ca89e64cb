"""The toy problem of the paper, and a stage on which schedulers work without a cluster.

Q = 1.2 - w1^2 - w2^2 is wanted, and members climb 1.2 - h1 w1^2 - h2 w2^2 from w = (0.9, 0.9).
"""

import math
from types import SimpleNamespace

from ray import tune
from ray.tune.experiment import Trial

from lightning_sobolev.experiments.tune.search_space import Setting

RATE, STEPS, ROUNDS = 0.05, 10, 40
SMALL = 1e-3  # stands for the paper's h = 0, which has no logarithm
SPACE = {"h1": Setting(["h1"], 1e-4, 4.0), "h2": Setting(["h2"], 1e-4, 4.0)}
STARTS = [  # not quite symmetric: two members that tie do not copy each other
    {"member": 0, "h1": 0.0, "h2": math.log(SMALL)},
    {"member": 1, "h1": math.log(SMALL), "h2": math.log(0.9)},
]


def climb(w, config):
    h = [math.exp(config["h1"]), math.exp(config["h2"])]
    w = [x * (1 - 2 * RATE * y) ** STEPS for x, y in zip(w, h, strict=True)]
    return 1.2 - w[0] ** 2 - w[1] ** 2, w


class StagedTrial(SimpleNamespace):
    """What a scheduler asks of a trial; its checkpoint is its state itself."""

    __hash__ = object.__hash__

    def __init__(self, config):
        keeper = SimpleNamespace(
            checkpoint_config=tune.CheckpointConfig(), _latest_checkpoint_result=None
        )
        super().__init__(
            config=config,
            status=Trial.PENDING,
            last_result={},
            experiment_tag="",
            trial_id=str(config["member"]),
            evaluated_params={},
            temporary_state=SimpleNamespace(saving_to=None),
            run_metadata=SimpleNamespace(checkpoint_manager=keeper, invalidate_cache=lambda: None),
        )

    def __eq__(self, other):
        return self is other

    @property
    def latest_checkpoint_result(self):
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result

    @property
    def checkpoint(self):
        return self.latest_checkpoint_result.checkpoint

    def keep(self, state, time=0):
        latest = SimpleNamespace(checkpoint=state, metrics={"training_iteration": time})
        self.run_metadata.checkpoint_manager._latest_checkpoint_result = latest

    def set_config(self, config):
        self.config = config

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag

    def set_status(self, status):
        self.status = status

    def is_finished(self):
        return False


class Stage:
    """Runs members in turns, as a controller with one worker does."""

    search_alg = None

    def __init__(self, scheduler, starts):
        self.scheduler, self.trials = scheduler, [StagedTrial(dict(start)) for start in starts]
        self.history, self.marked, self._tune_controller = [], [], self
        for trial in self.trials:
            trial.keep(([0.9, 0.9], []))
            if scheduler is not None:
                scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    get_live_trials = get_trials

    def _schedule_trial_save(self, trial, result):
        return trial.checkpoint

    def _mark_trial_to_checkpoint(self, trial):
        self.marked.append(trial)

    def pause_trial(self, trial, should_checkpoint):
        trial.status = Trial.PAUSED

    def round(self, number, evaluate):
        """Let every member train once; ``evaluate(state, config)`` returns its score and state."""
        for trial in self.trials:
            trial.status = Trial.RUNNING
            state, recent = trial.checkpoint
            score, state = evaluate(state, trial.config)
            recent = [*recent, score][-10:]
            trial.keep((state, recent), number)
            self.history.append((number, trial.config["member"], score))
            result = {"training_iteration": number, "score": score, "recent": recent}
            if self.scheduler is not None:
                self.scheduler.on_trial_result(self, trial, result)
            trial.last_result = result
            trial.status = Trial.PAUSED


def staged(scheduler, starts=STARTS, rounds=ROUNDS):
    stage = Stage(scheduler, starts)
    for number in range(1, rounds + 1):
        # A search stops behind its last round without another exploit.
        stage.scheduler = scheduler if number < rounds else None
        stage.round(number, climb)
    return stage.history
