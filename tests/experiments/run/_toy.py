"""A small experiment of its own: what the run room does must not depend on the others."""

import sys

import lightning.pytorch as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from torch import nn
from torch.nn.functional import mse_loss

from lightning_sobolev.experiments.common.optimizers import configured
from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.sharding import shard
from lightning_sobolev.experiments.run.train import run
from lightning_sobolev.loading import Table


class Toy(pl.LightningModule):
    def __init__(self, net, optimizer, scheduler=None):
        super().__init__()
        self.net, self.optimizer, self.scheduler = net, optimizer, scheduler

    def configure_model(self):
        shard(self.net, self.device_mesh)

    def training_step(self, batch, batch_idx):
        loss = mse_loss(self.net(batch["x"]), batch["y"])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/error", mse_loss(self.net(batch["x"]), batch["y"]))

    def test_step(self, batch, batch_idx):
        self.log("test/error", mse_loss(self.net(batch["x"]), batch["y"]))

    def configure_optimizers(self):
        return configured(self.parameters(), self.optimizer, self.scheduler)


class ToyData(TableDataModule):
    def __init__(self, steps_per_epoch=100, seed=0):
        super().__init__(batch_size=4, steps_per_epoch=steps_per_epoch, seed=seed)
        self.points = torch.linspace(-1.0, 1.0, 14)[:, None]

    def training_points(self):
        x = self.points
        return Table({"x": x, "y": (3 * x[:, 0]).sin(), "dydx": 3 * (3 * x).cos()[:, None]})

    test_points = training_points

    def val_dataloader(self):
        return self.test_dataloader()


def toy_net():
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))


def composed(folder, *overrides, **settings):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", ["teacher=batch", "teacher.hessian=null", "logger=none", *overrides])
    own = {
        "name": "toy",
        "model": {"_target_": f"{__name__}.toy_net"},
        "module": {
            "_target_": f"{__name__}.Toy",
            "net": "${model}",
            "optimizer": "${optimizer}",
            "scheduler": "${scheduler}",
        },
        "data": {"_target_": f"{__name__}.ToyData", "steps_per_epoch": 7, "seed": "${seed}"},
        "score": {"metric": "val/error", "mode": "min"},
        "run_dir": str(folder),
        "progress": False,
        "steps": 12,
        "val_every": 5,
        "log_every": 2,
        "lr": 1e-2,
    }
    with open_dict(cfg):
        return OmegaConf.merge(cfg, own, settings)


if __name__ == "__main__":  # processes that Lightning starts run this again
    FOLDER, *OVERRIDES = sys.argv[1:]
    run(composed(FOLDER, *OVERRIDES))
