"""A search from its configuration: a population, its best member, and the numbers."""

import logging
import shutil
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev.experiments.report.records import write_csv
from lightning_sobolev.experiments.run.finished import METRICS, StartingRun, write_metrics
from lightning_sobolev.experiments.run.train import (
    build_trainer,
    checked,
    config_hash,
    open_run,
    prepare_process,
)
from lightning_sobolev.experiments.tune.history import History, read_history
from lightning_sobolev.experiments.tune.knobs import draw, read_knobs

log = logging.getLogger(__name__)

BEST, POPULATION = "best.ckpt", "population"


def run_tuning(cfg: DictConfig) -> dict[str, float | str]:
    """Train a population, test its best member and show how it came about.

    Leaves in ``cfg.run_dir``: ``best.ckpt``, ``history.csv`` (a line a member and interval),
    ``schedule.png``, ``lineage.png`` and, last, ``metrics.json``; in ``population/`` what Ray
    stores. Called again with the same folder it goes on; a finished search is left alone.

    Args:
        cfg: The composed configuration, see ``conf/tune.yaml``.

    Returns:
        The content of ``metrics.json``; empty if it was there before.

    Raises:
        ValueError: If a setting is out of its range, or no member ended with a finite score.
        RuntimeError: If a member failed.
        ModuleNotFoundError: If Ray is missing.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError("ray is missing: install the extra 'tune'")
    started = time.perf_counter()
    cfg = _checked(cfg)
    folder = Path(cfg.run_dir)
    if (folder / METRICS).is_file():
        log.info("%s is finished", folder)
        return {}
    prepare_process(cfg)
    prepare_data(cfg, folder)
    from lightning_sobolev.experiments.tune.population import train_population  # needs the extra

    checkpoints = train_population(cfg, folder / POPULATION, first_configs(cfg))
    history = read_history(folder / POPULATION, cfg.tuning.score.mode)
    shutil.copy(checkpoints[history.best], folder / BEST)
    _show(cfg, folder, history)
    metrics: dict[str, float | str] = {
        **test_best(cfg, folder / BEST),
        "score": history.score(history.best),
        "best_member": history.best,
        "copies": history.copies,
        "diverged": history.diverged,
        "total_steps": cfg.tuning.population * cfg.steps,
        "seed": cfg.seed,
        "seconds_total": time.perf_counter() - started,
        "config_hash": config_hash(cfg),
    }
    log.info("numbers: %s", write_metrics(folder, metrics))
    return metrics


def _checked(cfg: DictConfig) -> DictConfig:
    cfg = checked(cfg)
    cfg.run_dir = str(Path(cfg.run_dir).resolve())
    cfg.progress = False  # members would talk all at once
    tuning = cfg.tuning
    if tuning.population < 2:
        raise ValueError(f"tuning.population must be at least 2, got {tuning.population}")
    if not 1 <= tuning.intervals <= cfg.steps:
        raise ValueError(
            f"tuning.intervals must be from 1 to steps ({cfg.steps}), got {tuning.intervals}"
        )
    if tuning.score.mode not in ("min", "max"):
        raise ValueError(f"tuning.score.mode must be 'min' or 'max', got {tuning.score.mode!r}")
    return cfg


def first_configs(cfg: DictConfig) -> list[dict[str, float]]:
    """Return what every member begins with: its number and positions of the knobs.

    Args:
        cfg: The composed configuration. The draws are a function of its seed.
    """
    knobs = read_knobs(cfg, cfg.tuning.knobs)
    random = Random(f"{cfg.seed} first")
    members = range(cfg.tuning.population)
    if not cfg.tune.drawn:
        return [{"member": member} for member in members]
    return [{"member": member, **draw(knobs, random)} for member in members]


def prepare_data(cfg: DictConfig, folder: Path) -> None:
    """Record or download once, before several members would.

    Args:
        cfg: The composed configuration.
        folder: Of the run.
    """
    open_run(cfg, StartingRun(instantiate(cfg.task.module), instantiate(cfg.data), folder))


def test_best(cfg: DictConfig, checkpoint: Path) -> dict[str, float]:
    """Test a checkpoint on the experiment's own test data.

    Args:
        cfg: The composed configuration.
        checkpoint: The file.

    Returns:
        What the test logs.
    """
    cfg = cfg.copy()
    cfg.callbacks, cfg.logger = {}, {}
    module, datamodule = instantiate(cfg.task.module), instantiate(cfg.data)
    found: Any = build_trainer(cfg).test(
        module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True, verbose=False
    )
    return dict(found[0])


def _show(cfg: DictConfig, folder: Path, history: History) -> None:
    write_csv(folder / "history.csv", history.columns, history.records)
    if cfg.pictures:
        from lightning_sobolev.experiments.tune.showing import draw_lineage, draw_schedule

        draw_schedule(folder / "schedule.png", history)
        draw_lineage(folder / "lineage.png", history)
