"""One run from its configuration: data, training, test, and the numbers."""

import json
import logging
import math
import secrets
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig
from rich.console import Console

from lightning_sobolev._files import sweep, write_text
from lightning_sobolev.experiments.report.curves import save_curves
from lightning_sobolev.experiments.run import checkpoints
from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.run.conf import config_hash
from lightning_sobolev.experiments.run.curves import Curves
from lightning_sobolev.experiments.run.decided import DECISION, decided, is_first, prepared_data
from lightning_sobolev.experiments.run.interrupts import WholeSteps, shell_status
from lightning_sobolev.experiments.run.sharding import one_process
from lightning_sobolev.experiments.run.summary import matched, summary_table

log = logging.getLogger(__name__)

METRICS = "metrics.json"
Metrics = dict[str, float | str]


def run(cfg: DictConfig) -> Metrics:
    """Do everything that an experiment needs.

    Leaves in ``cfg.run_dir``: ``metrics.json`` (only when everything finished), ``curves.csv``,
    ``checkpoints/last.ckpt``, figures, and what the experiment's callbacks write.
    """
    started = time.perf_counter()
    cfg = checked(cfg)
    prepare_process(cfg)
    with alone_in(Path(cfg.run_dir)), shell_status():
        ckpt = checkpoints.checkpoint_to_resume(cfg)
        _forget(Path(cfg.run_dir), ckpt)
        for place in (Path(cfg.run_dir), Path(cfg.run_dir) / LAST.parent):
            sweep(place)
        metrics, decided = _train_and_test(cfg, ckpt)
        if not metrics:
            return {}
        if cfg.pictures:
            save_curves(Path(cfg.run_dir))
        metrics |= {"seconds_total": time.perf_counter() - started, "config_hash": config_hash(cfg)}
        path = write_metrics(Path(cfg.run_dir), metrics)
    console = Console()
    console.print(summary_table(cfg, metrics))
    console.print(matched(decided), highlight=False)
    log.info("numbers: %s", path)
    return metrics


def _forget(folder: Path, ckpt: Path | None) -> None:
    """Delete what an earlier run says in the folder, but for one that is gone on with."""
    if not is_first():
        return  # the first process has done so, and has perhaps decided since
    (folder / METRICS).unlink(missing_ok=True)
    if ckpt is None or ckpt.resolve().parent.parent != folder.resolve():
        # other processes would take it over while the first one tries out: each waits for the other
        (folder / DECISION).unlink(missing_ok=True)


def _train_and_test(cfg: DictConfig, ckpt: Path | None) -> tuple[Metrics, DictConfig]:
    # Before the clock of the training starts: data is recorded for many runs.
    datamodule = prepared_data(cfg)
    cfg, settings = decided(cfg, datamodule, ckpt and ckpt.resolve().parent.parent)
    module = instantiate(cfg.module)
    curves = Curves(cfg.run_dir, cfg.log_every, say=not cfg.progress)
    trainer = build_trainer(cfg, [curves])
    _fit(trainer, model=module, datamodule=datamodule, ckpt_path=ckpt)
    metrics: Metrics = {
        "seed": cfg.seed,
        "seconds_fit": curves.seconds,
        "cpu_seconds_fit": curves.cpu_seconds,
        **settings,
        **{key: float(value) for key, value in trainer.callback_metrics.items()},
        "steps": trainer.global_step,
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    keepers = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    best = next((keeper.best_model_path for keeper in keepers if keeper.best_model_path), None)
    module = one_process(trainer, module, lambda: instantiate(cfg.module))
    if not trainer.is_global_zero:
        return {}, cfg
    if trainer.world_size > 1:
        trainer = build_trainer(cfg, strategy="auto", devices=1)
    quiet = {"weights_only": True, "verbose": False}
    metrics |= trainer.test(module, datamodule=datamodule, ckpt_path=best, **quiet)[0]
    return metrics, cfg


def prepare_process(cfg: DictConfig) -> None:
    """Set threads, seed and what is said."""
    # Lightning's own advice and habits; nothing that somebody who runs this could change.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec", FutureWarning)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_news)
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)


def _is_news(record: logging.LogRecord) -> bool:
    habits = ("available:", "`Trainer.", "💡", "weights_only", "LOCAL_RANK")
    return not any(habit in record.getMessage() for habit in habits)


def checked(cfg: DictConfig) -> DictConfig:
    """Return a copy in which everything that was left open is decided."""
    if missing := [part for part in ("module", "data") if cfg.get(part) is None]:
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
        log.warning("pictures are left out: matplotlib is missing, install the extra 'experiments'")
        cfg.pictures = False
    return cfg


def score_of(cfg: DictConfig, metrics: Metrics) -> float | None:
    """Return the number by which sweeps compare runs; None where it was not measured."""
    score = None if cfg.score is None else metrics.get(cfg.score.metric)
    return None if score is None else float(score)


def build_trainer(
    cfg: DictConfig, callbacks: Sequence[pl.Callback] = (), **options: Any
) -> pl.Trainer:
    """Return the trainer with callbacks and loggers."""
    used = [instantiate(callback) for callback in cfg.callbacks.values()]
    if cfg.sobolev.callback is not None:
        # First: its hooks stand before those of callbacks that copy or save the module.
        used.insert(0, instantiate(cfg.sobolev.callback))
    used += [*callbacks, WholeSteps()]
    used += [checkpoints.LastCheckpoint(Path(cfg.run_dir) / LAST.parent, cfg.checkpoint_every)]
    if cfg.progress:
        used.append(_Bar(refresh_rate=10))
    options |= {"callbacks": used, "logger": build_loggers(cfg) or False}
    options |= {"enable_progress_bar": cfg.progress, "enable_model_summary": False}
    trainer: pl.Trainer = instantiate(cfg.trainer, **options)
    return trainer


class _Bar(RichProgressBar):
    """Lightning's bar without the number of the version, which is the logger's name here."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        loss = trainer.callback_metrics.get("train/loss")
        shown = {} if loss is None else {"train/loss": float(loss)}
        return {**shown, **{key: value for key, value in metrics.items() if key != "v_num"}}


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """Return the loggers that ``cfg.logger`` names; CSV files where a library is missing."""
    try:
        return [instantiate(logger) for logger in cfg.logger.values()]
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        log.warning("%s: logging to CSV files instead", error.__cause__)
        return [CSVLogger(cfg.run_dir, name=None, version="csv")]


def write_metrics(folder: Path, metrics: Mapping[str, float | str]) -> Path:
    """Write ``metrics.json`` whole or not at all; its presence says that the run finished."""
    flat = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in metrics.items()
    }
    write_text(folder / METRICS, json.dumps(flat, indent=2, sort_keys=True) + "\n")
    return folder / METRICS


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder for one run; a lock that its process leaves behind holds nobody up."""
    folder.mkdir(parents=True, exist_ok=True)
    # Processes that a strategy starts share the folder with the first one, which holds the lock.
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock if is_first() else nullcontext():
            yield
    except Timeout as error:
        if error.lock_file != lock.lock_file:
            raise  # somebody else's, from inside
        raise ValueError(f"run_dir must be of one run, got {folder}, where one works") from error


def _fit(trainer: pl.Trainer, **what: Any) -> None:
    try:
        trainer.fit(**what, weights_only=True)
    except SystemExit:
        # The trainer turns signals into this, after its callbacks have saved the checkpoint.
        saved = Path(trainer.default_root_dir) / LAST
        if trainer.is_global_zero and saved.is_file():
            resume = checkpoints.command_to_resume(saved)
            log.warning("interrupted at step %d; to go on: %s", trainer.global_step, resume)
        raise
