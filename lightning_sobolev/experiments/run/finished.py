"""What may be done with a run before its training, and before its numbers are written."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import lightning.pytorch as pl

from lightning_sobolev._files import write_text

METRICS = "metrics.json"


@dataclass(frozen=True, slots=True)
class StartingRun:
    """A module and its data, before anything was recorded or trained.

    Args:
        module: The module.
        datamodule: Its data.
        folder: The folder of the run.
        show_progress: Whether somebody watches.
    """

    module: pl.LightningModule
    datamodule: pl.LightningDataModule
    folder: Path
    show_progress: bool = False


class FinishedRun(StartingRun):
    """The same after training and test."""


class Opening(Protocol):
    """A first piece of work, which may refuse to go on: replay the teacher."""

    def __call__(self, run: StartingRun) -> Mapping[str, float]:
        """Return numbers for ``metrics.json``, by key."""
        ...


class Closing(Protocol):
    """A last piece of work: play the game, draw a picture."""

    def __call__(self, run: FinishedRun) -> Mapping[str, float]:
        """Return numbers for ``metrics.json``, by key."""
        ...


def write_metrics(folder: Path, metrics: Mapping[str, float | str]) -> Path:
    """Write ``metrics.json`` whole or not at all; its presence says that the run finished.

    Args:
        folder: The folder of the run.
        metrics: Flat numbers. JSON has no NaN and no infinity: they become null.

    Returns:
        The path of the file.
    """
    flat = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in metrics.items()
    }
    path = folder / METRICS
    write_text(path, json.dumps(flat, indent=2, sort_keys=True) + "\n")
    return path
