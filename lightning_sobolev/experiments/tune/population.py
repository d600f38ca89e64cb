"""A population under Ray Tune: started, gone on with, and what it leaves (extra ``tune``)."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before Ray reads them: no reports home, and the paths of a configuration stay relative to where
# the command was given. See also Note [kept checkpoints].
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it talks at verbose=0 too

import ray
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from ray import tune
from ray.tune.search import BasicVariantGenerator

from lightning_sobolev.experiments.run.resuming import LAST
from lightning_sobolev.experiments.tune.knobs import read_knobs
from lightning_sobolev.experiments.tune.member import Member
from lightning_sobolev.experiments.tune.schedulers import MEMBER, SCORE

log = logging.getLogger(__name__)
# It tells every copy in logarithms; history.csv tells it in settings.
logging.getLogger("ray.tune.schedulers.pbt").setLevel(logging.WARNING)


class _Progress(tune.Callback):
    """Says what every member came to."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        del iteration, trials, trial
        text = "step %d, member %d: %.4g"
        log.info(text, result["end"], result[MEMBER], result[SCORE])


def train_population(
    cfg: DictConfig, folder: Path, configs: Sequence[dict[str, float]]
) -> dict[int, Path]:
    """Train every member to the end, or go on where an earlier call was killed.

    Args:
        cfg: The composed configuration.
        folder: What Ray stores.
        configs: What every member begins with.

    Returns:
        The last checkpoint of every member that has one.

    Raises:
        RuntimeError: If a member failed.
    """
    own = not ray.is_initialized()  # whoever has a cluster, or starts many searches, keeps it
    if own:
        ray.init(num_cpus=cfg.tuning.workers, include_dashboard=False, log_to_driver=False)
    try:
        results = _tuner(cfg, folder, configs).fit()
    finally:
        if own:
            ray.shutdown()
    if results.errors:
        raise RuntimeError(f"a member failed, see {folder}: {results.errors[0]}")
    found = {}
    for number in range(len(results)):
        ended: Any = results[number]
        found[ended.metrics[MEMBER]] = Path(ended.checkpoint.path) / LAST.name
    return {member: path for member, path in found.items() if path.is_file()}


def _tuner(cfg: DictConfig, folder: Path, configs: Sequence[dict[str, float]]) -> tune.Tuner:
    container = OmegaConf.to_container(cfg, resolve=False)  # a member's settings change others
    resources = {str(name): float(amount) for name, amount in cfg.tuning.resources.items()}
    trainable = tune.with_resources(tune.with_parameters(Member, cfg=container), resources)
    if tune.Tuner.can_restore(folder):
        log.info("going on with %s", folder)
        return tune.Tuner.restore(str(folder), trainable, resume_errored=True)
    tuning, knobs = cfg.tuning, read_knobs(cfg, cfg.tuning.knobs)
    scheduler = instantiate(cfg.tune.scheduler)
    return tune.Tuner(
        trainable,
        param_space={key: tune.uniform(-100.0, 100.0) for key in configs[0]},
        tune_config=tune.TuneConfig(
            num_samples=len(configs),
            search_alg=BasicVariantGenerator(points_to_evaluate=list(configs)),
            scheduler=scheduler and scheduler(knobs, mode=tuning.score.mode, seed=cfg.seed),
            reuse_actors=True,  # else every copy waits for a new process
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop={"training_iteration": tuning.intervals},
            # Note [kept checkpoints]: with num_to_keep a donor's file is gone before it is copied.
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=None, checkpoint_frequency=1, checkpoint_at_end=True
            ),
            callbacks=[_Progress()],
            verbose=0,
        ),
    )
