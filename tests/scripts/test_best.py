"""With ``callbacks=best`` the weights of the best validation are the ones that are tested."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra.utils import instantiate

from lightning_sobolev.experiments.run.history import read_curves
from lightning_sobolev.experiments.run.train import run
from tests.scripts.conftest import DISTILLATION

LEARNS = (*DISTILLATION, "steps=6", "val_every=1", "sobolev=none", "pictures=false")


def kl_of(cfg, checkpoint):
    module, datamodule = instantiate(cfg.task.module), instantiate(cfg.data)
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    return trainer.test(module, datamodule=datamodule, verbose=False)[0]["test/kl"]


def test_the_best_validation_decides_what_is_tested(composed):
    # Turned round, so that the best is not the last: the student gets better all the time.
    cfg = composed(*LEARNS, "callbacks=best", "callbacks.best.mode=max")
    metrics = run(cfg)
    checkpoints = Path(cfg.run_dir) / "checkpoints"
    curve = read_curves(Path(cfg.run_dir) / "curves.csv")["val/kl"]
    best = torch.load(checkpoints / "best.ckpt", weights_only=True)
    assert best["global_step"] == max(curve, key=lambda entry: entry[2])[0] < 6
    assert metrics["test/kl"] == pytest.approx(kl_of(cfg, checkpoints / "best.ckpt"))
    assert metrics["test/kl"] > kl_of(cfg, checkpoints / "last.ckpt")


def test_without_it_the_last_weights_are_tested(composed):
    cfg = composed(*LEARNS)
    metrics = run(cfg)
    last = Path(cfg.run_dir) / "checkpoints" / "last.ckpt"
    assert metrics["test/kl"] == pytest.approx(kl_of(cfg, last))
