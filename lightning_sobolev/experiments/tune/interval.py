"""Train a run from one checkpoint to the next with the settings of the moment."""

import logging
import math
from pathlib import Path
from random import Random
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from lightning_sobolev.experiments.run.saving import SaveLast
from lightning_sobolev.experiments.run.train import build_trainer
from lightning_sobolev.experiments.tune.rates import OwnLearningRate
from lightning_sobolev.loading import OrderedBatches, ResumableLoader

_ROWS = 1024


def train_interval(
    cfg: DictConfig, folder: Path, *, member: int, start: Path | None, end: int
) -> float:
    """Go on until a step, and evaluate there.

    What the checkpoint brings is the donor's: weights, moments, place on every schedule, number of
    draws, running scales. What ``cfg`` says is the member's own: weights of the terms, rows,
    learning rate.

    Args:
        cfg: The composed configuration, with the member's settings.
        folder: Where ``last.ckpt`` is left.
        member: Number of the member; with ``cfg.seed`` it decides the first weights. All members
            see the same data.
        start: The checkpoint; None to begin.
        end: The step to stop behind.

    Returns:
        The score on validation data; NaN if the training diverged, and then the checkpoint is of
        no use.
    """
    cfg = _for_an_interval(cfg, folder, first=start is None, end=end)
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    datamodule = instantiate(cfg.data)
    seed = Random(f"{cfg.seed} {member} {end}").randrange(2**31)
    pl.seed_everything(seed, workers=True, verbose=False)
    module = instantiate(cfg.task.module)
    trainer = build_trainer(cfg)
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=start, weights_only=True)
    except FloatingPointError:  # a term that is not finite: this member has diverged
        return math.nan
    return score(trainer, module, datamodule, cfg.tuning.score.metric)


def _for_an_interval(cfg: DictConfig, folder: Path, *, first: bool, end: int) -> DictConfig:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.run_dir = str(folder)
        cfg.trainer.max_steps = end
        cfg.val_every = cfg.steps + 1  # the score is asked for afterwards
        cfg.callbacks = {"rate": {"_target_": _target(OwnLearningRate)}}
        cfg.callbacks["last"] = {"_target_": _target(SaveLast), "folder": str(folder)}
        cfg.logger = {}
        cfg.progress = cfg.pictures = False
        if not first:  # the doctor has seen this student
            cfg.sobolev.doctor = False
    return cfg


def _target(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def score(trainer: pl.Trainer, module: pl.LightningModule, datamodule: Any, metric: str) -> float:
    """Evaluate on data that choices may be made by; the test data stay unseen.

    Args:
        trainer: A trainer that has trained.
        module: The module.
        datamodule: Its data. For a ``test/`` metric it has ``validation_points()``, which take the
            place of the test points.
        metric: What is logged: ``val/kl``, ``test/value_nmse``.

    Returns:
        The number.

    Raises:
        ValueError: If nothing of this name is logged.
    """
    if metric.startswith("val/"):
        found = trainer.validate(module, datamodule=datamodule, weights_only=True, verbose=False)
    else:
        points = datamodule.validation_points()
        loader = ResumableLoader(points, OrderedBatches(len(points), _ROWS))
        found = trainer.test(module, dataloaders=loader, weights_only=True, verbose=False)
    if metric not in found[0]:
        raise ValueError(f"tuning.score.metric must be one of {list(found[0])}, got {metric!r}")
    return found[0][metric]
