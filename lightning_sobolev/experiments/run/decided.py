"""Settings that an experiment leaves to its data: when they are decided, and where that is kept."""

import logging
import os
import time
from pathlib import Path

import lightning.pytorch as pl
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev._checks import require
from lightning_sobolev._files import read_json, write_json
from lightning_sobolev.doctor.rehearsal import own_random_numbers

log = logging.getLogger(__name__)

DECISION = "decision.json"
SECONDS = "cpu_seconds_decide"
Settings = dict[str, float | str]


def prepared_data(cfg: DictConfig) -> pl.LightningDataModule:
    """Return the data, recorded or loaded; what they are to decide is checked before that."""
    if cfg.get("decide") is not None:
        instantiate(cfg.decide).check(cfg)
    datamodule: pl.LightningDataModule = instantiate(cfg.data)
    datamodule.prepare_data()
    return datamodule


def decided(
    cfg: DictConfig, datamodule: pl.LightningDataModule, resumed: Path | None = None
) -> tuple[DictConfig, Settings]:
    """Return the configuration with the settings that its data decide, and those.

    They are kept in ``decision.json`` in the folder of the run. What was decided in the
    folder of a run that is ``resumed`` holds, but for what the configuration says otherwise. Of
    several processes the first decides for all.
    """
    if cfg.get("decide") is None:
        return cfg, {}
    decider = instantiate(cfg.decide)
    path = Path(cfg.run_dir) / DECISION
    earlier = _of_run(resumed) if is_first() else _of_first(path)
    started = time.process_time()
    with own_random_numbers():
        settings: Settings = decider.settings(cfg, datamodule, earlier)
    spent = time.process_time() - started
    settings[SECONDS] = spent + float(earlier.get(SECONDS, 0.0))
    if is_first():
        write_json(path, settings)
    return decider.applied(cfg, settings), settings


def is_first() -> bool:
    """Whether this is the process that starts the others, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _of_first(path: Path) -> Settings:
    found = read_json(path)
    text = "the decision of the first process, which starts the others"
    require(found is not None, str(path), text, "no such file")
    return found or {}


def _of_run(folder: Path | None) -> Settings:
    if folder is None:
        return {}
    found = read_json(folder / DECISION)
    if found is None:
        log.warning("%s is missing: what the data decide is decided now", folder / DECISION)
    return found or {}
