"""One run from its configuration: data, training, test, what follows, and the numbers."""

import hashlib
import json
import logging
import secrets
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from lightning_sobolev.experiments.distillation.pictures import save_curves
from lightning_sobolev.experiments.run.finished import FinishedRun, StartingRun, write_metrics
from lightning_sobolev.experiments.run.resuming import LAST, checkpoint_to_resume, command_to_resume
from lightning_sobolev.experiments.run.saving import best_weights
from lightning_sobolev.experiments.run.sharding import whole
from lightning_sobolev.experiments.run.summary import matched, summary_table
from lightning_sobolev.experiments.run.threads import one_thread

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> dict[str, float | str]:
    """Do everything that an experiment needs.

    Leaves in ``cfg.run_dir``: ``metrics.json`` (only when everything finished), ``curves.csv``,
    ``checkpoints/last.ckpt``, pictures, and what the experiment's closing steps write.

    Args:
        cfg: The composed configuration, see ``conf/train.yaml``.

    Returns:
        The content of ``metrics.json``; empty on processes other than the first.

    Raises:
        ValueError: If no experiment was chosen or the checkpoint to resume from does not exist.
    """
    started = time.perf_counter()
    cfg = checked(cfg)
    prepare_process(cfg)
    folder = Path(cfg.run_dir)
    ckpt = checkpoint_to_resume(cfg.ckpt, folder)
    datamodule, module = instantiate(cfg.data), instantiate(cfg.task.module)
    opening = open_run(cfg, StartingRun(module, datamodule, folder, show_progress=cfg.progress))
    trainer = build_trainer(cfg)
    metrics: dict[str, float | str] = {
        **opening,
        "seed": cfg.seed,
        "seconds_fit": _fit(trainer, module, datamodule, ckpt),
        **{key: float(value) for key, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    if (states := getattr(datamodule, "num_train_states", None)) is not None:
        metrics["train_states"] = states
    tested = best_weights(trainer)
    metrics |= trainer.test(
        module, datamodule=datamodule, ckpt_path=tested, weights_only=True, verbose=False
    )[0]
    module = whole(module, lambda: instantiate(cfg.task.module))
    if not trainer.is_global_zero:
        return {}
    metrics |= _close(cfg, FinishedRun(module, datamodule, folder, show_progress=cfg.progress))
    metrics |= {"seconds_total": time.perf_counter() - started, "config_hash": config_hash(cfg)}
    path = write_metrics(folder, metrics)
    console = Console()
    console.print(summary_table(cfg, metrics))
    console.print(matched(cfg), highlight=False)
    log.info("numbers: %s", path)
    return metrics


def prepare_process(cfg: DictConfig) -> None:
    """Set threads, seed and how much is said.

    Args:
        cfg: The composed configuration, checked.
    """
    if not cfg.progress:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)


def open_run(cfg: DictConfig, starting: StartingRun) -> dict[str, float]:
    """Do what comes before the clock of the training starts; data is recorded for many runs.

    Args:
        cfg: The composed configuration, checked.
        starting: The run.

    Returns:
        The numbers of its opening steps.
    """
    numbers: dict[str, float] = {}
    for opening in cfg.task.opening.values():
        numbers |= instantiate(opening)(starting)
    with one_thread():
        starting.datamodule.prepare_data()
    return numbers


def _close(cfg: DictConfig, finished: FinishedRun) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for closing in cfg.task.closing.values():
        numbers |= instantiate(closing)(finished)
    if cfg.pictures:
        save_curves(finished.folder)
    return numbers


def checked(cfg: DictConfig) -> DictConfig:
    """Return a copy in which everything that was left open is decided.

    Args:
        cfg: The composed configuration.

    Raises:
        ValueError: If no experiment was chosen.
    """
    missing = [group for group in ("task", "data", "model") if cfg.get(group) is None]
    if missing:
        raise ValueError(
            "an experiment must be chosen, +experiment=distill_pong or another one of "
            f"conf/experiment (with the plus): it fills in {', '.join(missing)}, got none"
        )
    cfg = cfg.copy()
    if cfg.seed is None:
        cfg.seed = secrets.randbelow(2**31)
    if cfg.progress is None:
        cfg.progress = sys.stdout.isatty()
    if cfg.pictures and find_spec("matplotlib") is None:
        log.warning("pictures are left out: matplotlib is missing, install the extra 'viz'")
        cfg.pictures = False
    return cfg


def build_trainer(cfg: DictConfig) -> pl.Trainer:
    """Return the trainer with callbacks and loggers.

    Args:
        cfg: The composed configuration; ``cfg.progress`` is decided.
    """
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    if cfg.sobolev.callback is not None:
        # First: its hooks stand before those of callbacks that copy or save the module.
        callbacks.insert(0, instantiate(cfg.sobolev.callback))
    if cfg.progress:
        callbacks += [RichProgressBar(refresh_rate=10), RichModelSummary()]
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=build_loggers(cfg) or False,
        enable_progress_bar=cfg.progress,
        enable_model_summary=cfg.progress,
    )
    return trainer


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """Return the loggers that ``cfg.logger`` names; CSV files where a library is missing.

    Args:
        cfg: The composed configuration.

    Raises:
        InstantiationException: If a logger cannot be built for another reason.
    """
    try:
        return [instantiate(logger) for logger in cfg.logger.values()]
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        log.warning("%s: logging to CSV files instead", error.__cause__)
        return [CSVLogger(cfg.run_dir, name=None, version="csv")]


def _fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule,
    ckpt: Path | None,
) -> float:
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt, weights_only=True)
    except SystemExit:
        # The trainer turns Ctrl-C into this, after its callbacks have saved the checkpoint.
        saved = Path(trainer.default_root_dir) / LAST
        if trainer.is_global_zero and saved.is_file():
            log.warning(
                "interrupted at step %d; to go on: %s",
                trainer.global_step,
                command_to_resume(saved),
            )
        raise
    return time.perf_counter() - started


def config_hash(cfg: DictConfig) -> str:
    """Return a short hash of everything that decides the result, seed included.

    Args:
        cfg: The composed configuration.
    """
    bare = cfg.copy()
    with open_dict(bare):
        # Where a run lies and how it is watched do not change its numbers.
        bare.run_dir = ""
        bare.ckpt = bare.pictures = bare.progress = bare.logger = bare.threads = None
    text = json.dumps(OmegaConf.to_container(bare, resolve=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
