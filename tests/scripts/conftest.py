import logging
import signal
import warnings
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_sobolev.experiments.images import datamodule
from lightning_sobolev.experiments.images.fashion_mnist import CLASSES
from lightning_sobolev.experiments.images.image_set import ImageSet, Labeled
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.run.train import run

# Real games, cut short: episodes of a few hundred frames.
DISTILLATION = (
    "+experiment=distill_pong",
    "scale=smoke",
    "steps=2",
    "data.sizes.train=128",
    "data.sizes.test=32",
    "data.sizes.validation=32",
    "data.batch_size=8",
    "+env.settings.num_envs=2",
    "sizes.smoke.frames=400",
    "sizes.smoke.num_episodes=0",
    "callbacks.video.num_frames=20",
)


@pytest.fixture
def composed(tmp_path):
    def compose_run(*overrides, name="run"):
        places = [f"run_dir={tmp_path / 'runs' / name}", "progress=false", "logger=none"]
        if {"+experiment=distill_pong", "+experiment=distill_policy"} & set(overrides):
            places.append(f"data.root={tmp_path / 'recordings'}")
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose("train", [*overrides, *places])

    return compose_run


@pytest.fixture
def finished(composed):
    def finish(*overrides):
        cfg = composed(*overrides)
        metrics = run(cfg)
        notes = Path(cfg.run_dir) / ".hydra"
        notes.mkdir()
        OmegaConf.save(cfg, notes / "config.yaml")
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            whole = compose("train", list(overrides), return_hydra_config=True)
        choices = {"hydra": {"runtime": {"choices": whole.hydra.runtime.choices}}}
        OmegaConf.save(OmegaConf.create(choices), notes / "hydra.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), notes / "overrides.yaml")
        return cfg, metrics

    return finish


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Single precision, and nothing that a run changes in the process is left behind."""
    dtype, level = torch.get_default_dtype(), logging.getLogger("lightning.pytorch").level
    handler = signal.getsignal(signal.SIGINT)
    torch.set_default_dtype(torch.float32)
    with warnings.catch_warnings():
        yield
    torch.set_default_dtype(dtype)
    logging.getLogger("lightning.pytorch").setLevel(level)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def pictures(monkeypatch):
    """Pictures whose brightest row tells their class, in place of a published set."""
    generator = torch.Generator().manual_seed(0)

    def build(count):
        labels = torch.randint(0, 10, (count,), generator=generator)
        drawn = torch.randint(0, 60, (count, 1, 28, 28), generator=generator)
        drawn[torch.arange(count), 0, 4 + 2 * labels] += 180
        return Labeled(drawn.to(torch.uint8), labels)

    made = ImageSet(build(128), build(64), CLASSES)
    monkeypatch.setitem(datamodule.IMAGES, "fashion_mnist", lambda *_, **__: made)
