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

_ALLOWED = ("lightning_sobolev.", "torch.nn.", "torch.optim.")
_PARTS = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


def load_module(folder: str | Path) -> pl.LightningModule:
    """Build the module of a finished run and give it the weights that the run tested.

    Somebody else's configuration could name anything. Only modules, optimizers, teachers and
    dataclasses of the package, ``torch.nn`` and ``torch.optim`` are built, also by functions;
    weights are read without unpickling: the best ones where the run kept them, else the last.
    """
    folder = Path(folder)
    cfg = read_config(folder)
    if cfg is None or cfg.get("module") is None:
        raise ValueError(f"folder must be that of a run, with {STORED} and a module, got {folder}")
    _check(cfg.module, folder / STORED)
    best = folder / BEST
    path = whole_checkpoint(best if best.is_file() else folder / LAST)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must hold the weights of a run: {error}") from error
    module: pl.LightningModule = instantiate(cfg.module)
    module.load_state_dict(stored["state_dict"])
    return module.eval()


def _check(node: Any, path: Path) -> None:
    for target in _targets(node):
        # Nothing is even imported unless its name is one of the package's or torch's.
        if not (target.startswith(_ALLOWED) and _builds_a_part(target)):
            raise ValueError(
                f"{path} must build only parts of models that the package, torch.nn and "
                f"torch.optim define, got _target_={target}"
            )


def _builds_a_part(target: str) -> bool:
    """Look at the thing itself: ``lightning_sobolev._files.os.system`` has an allowed name, too."""
    try:
        found = get_object(target)
    except Exception:  # hydra's own errors and whatever an import raises
        return False  # of another version, say
    owner = getattr(found, "__self__", None)  # a classmethod's class
    if isinstance(owner, type):
        found = owner
    if not getattr(found, "__module__", "").startswith(_ALLOWED):
        return False
    if not isinstance(found, type):
        found = getattr(found, "__annotations__", {}).get("return")
        return isinstance(found, type) and (_is_part(found) or is_dataclass(found))
    return _is_part(found) or is_dataclass(found)


def _is_part(kind: type) -> bool:
    is_teacher = kind.__module__.startswith("lightning_sobolev.teachers.")
    return issubclass(kind, _PARTS) or (is_teacher and kind.__name__.endswith("Teacher"))


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, DictConfig) and "_target_" in node:
        yield str(node["_target_"])
    if isinstance(node, DictConfig | ListConfig):
        for value in node.values() if isinstance(node, DictConfig) else node:
            yield from _targets(value)
