"""Modules of finished runs, read back."""

import zipfile
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig

from lightning_sobolev.experiments.run.checkpoints import BEST, LAST, whole_checkpoint
from lightning_sobolev.experiments.run.conf import STORED, read_config
from lightning_sobolev.teachers import (
    AnalyticTeacher,
    BatchTeacher,
    CachedTeacher,
    DirectionalTeacher,
    NetworkTeacher,
)

_ALLOWED = ("lightning_sobolev.", "torch.nn.", "torch.optim.")
_TEACHERS = (AnalyticTeacher, BatchTeacher, CachedTeacher, DirectionalTeacher, NetworkTeacher)
_PARTS = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, *_TEACHERS)


def load_module(folder: str | Path) -> pl.LightningModule:
    """Build the module of a finished run and give it the weights that the run tested.

    A run's configuration names what is built, so a folder that somebody else made could name
    anything. Only modules, optimizers, teachers and dataclasses are built, and what functions that
    return one of the former return, if the package, ``torch.nn`` or ``torch.optim`` defines them;
    weights are read without unpickling.

    Args:
        folder: The folder of the run. Its best checkpoint is read where it kept one
            (``callbacks=best``), else the last.

    Raises:
        ValueError: If there is no run, a file is damaged, or its configuration names something
            else.
    """
    folder = Path(folder)
    cfg = read_config(folder)
    if cfg is None or cfg.get("module") is None:
        raise ValueError(f"folder must be that of a run, with {STORED} and a module, got {folder}")
    check_targets(cfg.module, folder / STORED)
    best = folder / BEST
    path = whole_checkpoint(best if best.is_file() else folder / LAST)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must hold the weights of a run: {error}") from error
    module: pl.LightningModule = instantiate(cfg.module)
    module.load_state_dict(stored["state_dict"])
    return module.eval()


def check_targets(node: Any, path: Path) -> None:
    """Refuse a configuration that builds anything but parts of a model.

    Raises:
        ValueError: If a ``_target_`` is not allowed; it is named, and not even imported unless its
            name is one of the package's or torch's.
    """
    for target in _targets(node):
        if not (target.startswith(_ALLOWED) and _builds_a_part(_found(target))):
            raise ValueError(
                f"{path} must build only parts of models that the package, torch.nn and "
                f"torch.optim define, got _target_={target}"
            )


def _found(target: str) -> Any:
    try:
        return get_object(target)
    except Exception:  # hydra's own errors and whatever an import raises
        return None  # nothing that could be built: of another version, say


def _builds_a_part(found: Any) -> bool:
    """Look at the thing itself: ``lightning_sobolev._files.os.system`` has an allowed name, too."""
    owner = getattr(found, "__self__", None)  # a classmethod's class
    if isinstance(owner, type):
        found = owner
    if not getattr(found, "__module__", "").startswith(_ALLOWED):
        return False
    if not isinstance(found, type):
        found = getattr(found, "__annotations__", {}).get("return")
        return isinstance(found, type) and issubclass(found, _PARTS)
    return issubclass(found, _PARTS) or is_dataclass(found)


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in node:
            if key == "_target_":
                yield str(node[key])
            else:
                yield from _targets(node[key])
    elif isinstance(node, ListConfig):
        for value in node:
            yield from _targets(value)
