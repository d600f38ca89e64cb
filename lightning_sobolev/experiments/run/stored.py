"""Students of finished runs, read back."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev.experiments.distillation.module import DistillationModule
from lightning_sobolev.experiments.report.records import StoredRun, find_runs
from lightning_sobolev.experiments.run.resuming import LAST

BEST = LAST.with_name("best.ckpt")  # of the callbacks=best of conf/


def find_distillations(root: Path) -> list[StoredRun]:
    """Collect the finished distillations below a folder.

    Args:
        root: A folder whose finished runs all are distillations.

    Returns:
        The runs.

    Raises:
        ValueError: If there is no finished run, or one is no distillation.
    """
    runs = find_runs(root)
    for run in runs:
        if "env" not in run.config:
            raise ValueError(f"{run.folder} must hold a distillation, got {run.config.get('name')}")
    return runs


def chosen_weights(folder: Path) -> Path:
    """Find the weights that a finished run tested.

    Args:
        folder: The folder of the run.

    Returns:
        The checkpoint of its best validation where it kept one (``callbacks=best``), else the last.
    """
    return folder / BEST if (folder / BEST).is_file() else folder / LAST


def load_module(cfg: DictConfig, checkpoint: Path) -> DistillationModule:
    """Build a distillation's module and give it stored weights.

    Args:
        cfg: The configuration of its run.
        checkpoint: The weights, as :func:`chosen_weights` finds them.

    Returns:
        The module, in eval mode.
    """
    module: DistillationModule = instantiate(cfg.task.module)
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(stored["state_dict"])
    return module.eval()
