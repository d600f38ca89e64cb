"""Students of finished runs, read back."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev.tasks.distillation import DistillationModule


def load_module(cfg: DictConfig, checkpoint: Path) -> DistillationModule:
    """Build a distillation's module and give it the weights it ended with.

    Args:
        cfg: The configuration of its run.
        checkpoint: Its weights.

    Returns:
        The module, in eval mode.
    """
    module: DistillationModule = instantiate(cfg.task.module)
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.load_state_dict(stored["state_dict"])
    return module.eval()
