"""A search from its configuration: a population under Ray Tune, its best member, the numbers."""

import logging
import os
import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

# Before Ray reads them: no reports home, and the paths of a configuration stay relative to where
# the command was given.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it talks at verbose=0 too

import numpy as np
import ray
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from ray import tune
from ray.tune.search import BasicVariantGenerator

from lightning_sobolev._files import read_json, whole, write_json
from lightning_sobolev.experiments.run import train as single_run
from lightning_sobolev.experiments.run.checkpoints import BEST, LAST
from lightning_sobolev.experiments.run.conf import config_hash
from lightning_sobolev.experiments.tune.history import best_member, read_history
from lightning_sobolev.experiments.tune.schedulers import MEMBER, SCORE
from lightning_sobolev.experiments.tune.search_space import read_search_space
from lightning_sobolev.experiments.tune.trainable import WORKING, Member

log = logging.getLogger(__name__)
# It tells every copy in logarithms; history.csv tells it in settings.
logging.getLogger("ray.tune.schedulers.pbt").setLevel(logging.WARNING)

POPULATION = "population"
_BEGUN = "search.json"


def run_tuning(cfg: DictConfig) -> single_run.Metrics:
    """Train a population, test its best member and show how it came about.

    Leaves in ``cfg.run_dir``: ``best.ckpt``, ``history.csv`` (a line a member and interval),
    ``schedule.png``, ``lineage.png`` and, last, ``metrics.json``, whose content it returns; in
    ``population/`` what Ray stores. Called again with the same folder it goes on; a finished search
    is left alone. ``conf/tune.yaml`` says what ``cfg`` holds.
    """
    given, cfg = config_hash(cfg), _checked(cfg)
    folder = Path(cfg.run_dir)
    with single_run.alone_in(folder):
        cfg.seed = _seed_of(folder, given, cfg.seed)
        if (folder / single_run.METRICS).is_file():
            log.info("%s is finished", folder)
            return {}
        return _search(cfg, folder)


def _search(cfg: DictConfig, folder: Path) -> single_run.Metrics:
    started = time.perf_counter()
    single_run.prepare_process(cfg)
    single_run.check_decidable(cfg)
    datamodule = instantiate(cfg.data)
    datamodule.prepare_data()  # once, before several members would
    given, cfg = (
        config_hash(cfg),
        single_run.decided(cfg, datamodule, folder / single_run.DECISION)[0],
    )
    checkpoints = _train_population(cfg, folder)
    history = read_history(folder / POPULATION)
    best = best_member(history, cfg.score.mode)
    with whole(folder / BEST.name) as writing:
        shutil.copyfile(checkpoints[best], writing)
    with whole(folder / "history.csv") as writing:
        history.to_csv(writing, index=False)
    if cfg.pictures:
        from lightning_sobolev.experiments.tune.figures import draw_lineage, draw_schedule

        draw_schedule(folder / "schedule.png", history, best)
        draw_lineage(folder / "lineage.png", history, best)
    metrics: single_run.Metrics = {
        **_test(cfg, folder / BEST.name),
        "score": float(history.loc[history["member"] == best, "score"].iloc[-1]),
        "best_member": best,
        "copies": int((history["parent"] != history["member"]).sum()),
        "diverged": int((~np.isfinite(history["score"])).sum()),
        "total_steps": cfg.tuning.population * cfg.steps,
        "seed": cfg.seed,
        "seconds_total": time.perf_counter() - started,
        "config_hash": given,
    }
    log.info("numbers: %s", single_run.write_metrics(folder, metrics))
    return metrics


def _checked(cfg: DictConfig) -> DictConfig:
    cfg = single_run.checked(cfg)
    cfg.run_dir = str(Path(cfg.run_dir).resolve())
    cfg.progress = False  # members would talk all at once
    tuning = cfg.tuning
    if tuning.population < 2:
        raise ValueError(f"tuning.population must be at least 2, got {tuning.population}")
    if not 1 <= tuning.intervals <= cfg.steps:
        raise ValueError(
            f"tuning.intervals must be from 1 to steps ({cfg.steps}), got {tuning.intervals}"
        )
    if cfg.score is None or cfg.score.mode not in ("min", "max"):
        raise ValueError(f"score must be {{metric: ..., mode: min or max}}, got {cfg.score}")
    read_search_space(cfg)
    return cfg


def _seed_of(folder: Path, settings: str, seed: int) -> int:
    # Hydra has replaced the earlier call's configuration by this one's.
    begun = read_json(folder / _BEGUN) or {"settings": settings, "seed": seed}
    if begun["settings"] != settings:
        raise ValueError(f"run_dir must be of a search of the same settings, got {folder}")
    write_json(folder / _BEGUN, begun)
    return int(begun["seed"])  # drawn by the first call where none is given


def _train_population(cfg: DictConfig, folder: Path) -> dict[int, Path]:
    """Train every member, or go on with that; returns the last checkpoints by member."""
    shutil.rmtree(folder / WORKING, ignore_errors=True)  # of actors that were killed
    own = not ray.is_initialized()  # whoever has a cluster, or starts many searches, keeps it
    if own:
        ray.init(num_cpus=cfg.tuning.workers, include_dashboard=False, log_to_driver=False)
    try:
        results: Any = _tuner(cfg, folder / POPULATION).fit()
    finally:
        if own:
            ray.shutdown()
        shutil.rmtree(folder / WORKING, ignore_errors=True)
    if results.errors:
        raise RuntimeError(f"a member failed, see {folder}: {results.errors[0]}")
    return {trial.metrics[MEMBER]: Path(trial.checkpoint.path) / LAST.name for trial in results}


def _tuner(cfg: DictConfig, folder: Path) -> tune.Tuner:
    container = OmegaConf.to_container(cfg, resolve=False)  # a member's settings change others
    member = tune.with_parameters(Member, cfg=container)
    trainable = tune.with_resources(member, dict(cfg.tuning.resources))
    first = first_configs(cfg)
    drawn = {key: tune.uniform(-100.0, 100.0) for key in first[0]}
    if tune.Tuner.can_restore(folder):
        log.info("going on with %s", folder)
        # Ray does not write its state whole or not at all: if the kill fell into that, it begins
        # again, for which it needs the space.
        return tune.Tuner.restore(str(folder), trainable, resume_errored=True, param_space=drawn)
    space = read_search_space(cfg)
    scheduler = instantiate(cfg.tune.scheduler)
    return tune.Tuner(
        trainable,
        param_space=drawn,
        tune_config=tune.TuneConfig(
            num_samples=len(first),
            search_alg=BasicVariantGenerator(points_to_evaluate=first),
            scheduler=scheduler and scheduler(space, mode=cfg.score.mode, seed=cfg.seed),
            reuse_actors=True,  # else every copy waits for a new process
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop={"training_iteration": cfg.tuning.intervals},
            # All are kept: else a donor's file would be gone before it is copied.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
            callbacks=[_Progress()],
            verbose=0,
        ),
    )


def first_configs(cfg: DictConfig) -> list[dict[str, float]]:
    """Return what every member begins with: its number and positions of its settings."""
    random, space = Random(f"{cfg.seed} first"), read_search_space(cfg)
    sampled = space if cfg.tune.sampled else {}
    return [
        {MEMBER: member, **{name: random.uniform(*s.bounds) for name, s in sampled.items()}}
        for member in range(cfg.tuning.population)
    ]


class _Progress(tune.Callback):
    def on_trial_result(self, *_: Any, **info: Any) -> None:
        result = info["result"]
        log.info("step %d, member %d: %.4g", result["end"], result[MEMBER], result[SCORE])


def _test(cfg: DictConfig, checkpoint: Path) -> dict[str, float]:
    """Test a checkpoint as the experiment does: on its own test data, with its callbacks."""
    cfg = cfg.copy()
    cfg.logger = {}
    module, datamodule = instantiate(cfg.module), instantiate(cfg.data)
    found = single_run.build_trainer(cfg).test(
        module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    return dict(found[0])
