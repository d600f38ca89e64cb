"""A search for a small module: ``python -m tests.experiments.tune._search FOLDER``."""

import sys

from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import OmegaConf, open_dict

from lightning_sobolev.experiments.run.conf import config_folder
from tests.experiments.run._toy import ToyData


class Points(ToyData):
    def validation_points(self):
        return self.training_points()


class Refuses(Callback):
    def setup(self, trainer, pl_module, stage):
        raise RuntimeError("asked")


def composed(folder, *overrides, **settings):
    given = ["teacher=batch", "teacher.hessian=null", "logger=none", "pictures=false"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("tune", [*given, "scale=smoke", "progress=false", "steps=12", *overrides])
    parts = {"net": "${model}", "optimizer": "${optimizer}", "scheduler": "${scheduler}"}
    own = {
        "name": "toy",
        "model": {"_target_": "tests.experiments.run._toy.toy_net"},
        "module": {"_target_": "tests.experiments.run._toy.Toy", **parts},
        "data": {"_target_": "tests.experiments.tune._search.Points", "seed": "${seed}"},
        "score": {"metric": "val/error", "mode": "min"},
        "sobolev": {"final_weight": "${sobolev.weight}"},
        "run_dir": str(folder),
    }
    with open_dict(cfg):
        return OmegaConf.merge(cfg, own, settings)


if __name__ == "__main__":
    from lightning_sobolev.experiments.tune.tune import run_tuning

    small = ("steps=40", "tuning.population=3", "tuning.intervals=4", "tuning.workers=1")
    run_tuning(composed(sys.argv[1], *small, "pictures=true"))
