"""Students of finished runs, read back."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev.tasks.distillation import DistillationModule
from lightning_sobolev.tasks.resuming import LAST

BEST = LAST.with_name("best.ckpt")  # of the callbacks=best of conf/


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
