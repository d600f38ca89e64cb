"""Examine an experiment's student without training it.

``python -m lightning_sobolev.doctor +experiment=distill_pong [overrides]`` composes the same
configuration as ``scripts/train.py``, runs one step on one batch, and says which layers need a
remedy and whether the parameter gradient of the derivative terms agrees with finite differences.
Exit code 0 only if it does. Nothing is written but a recording that the experiment's data need.
"""

import argparse
import tempfile
from collections.abc import Sequence

import lightning.pytorch as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from lightning_sobolev._checks import require
from lightning_sobolev.experiments.common.module import QUIET
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.decided import decided, prepared_data


def main(arguments: Sequence[str]) -> int:
    """Compose, run one step, report."""
    parser = argparse.ArgumentParser(prog="python -m lightning_sobolev.doctor", description=__doc__)
    example = "e.g. +experiment=distill_pong model=small_cnn"
    parser.add_argument("overrides", nargs="+", help=example)
    overrides = parser.parse_args(arguments).overrides
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    if cfg.get("module") is None or cfg.sobolev.callback is None:
        print("the doctor needs +experiment=NAME and a sobolev group other than none")
        return 2
    try:
        _one_step(cfg)
    except (ValueError, RuntimeError) as error:
        print(f"not fit to train: {error}")
        return 1
    print("the doctor has no objection")
    return 0


def _one_step(cfg: DictConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cfg.run_dir = folder
        pl.seed_everything(cfg.seed, verbose=False)
        datamodule = prepared_data(cfg)
        # Where it is left open no trial decides for a single step: it is checked as it stands.
        if cfg.get("where") != "auto":
            cfg, _ = decided(cfg, datamodule)
        require(
            cfg.sobolev.callback is not None, "where", "stored, queries or auto", cfg.get("where")
        )
        callbacks = [instantiate(cfg.sobolev.callback)]
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=1, limit_val_batches=0, callbacks=callbacks, **QUIET
        )
        trainer.fit(instantiate(cfg.module), datamodule=datamodule)
