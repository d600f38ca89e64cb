import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from lightning_sobolev.atari import AtariSettings, Environments
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.teach.games import Games
from lightning_sobolev.experiments.teach.learner import build_learner
from lightning_sobolev.experiments.teach.settings import PPOSettings

# A few updates of a few steps; float32, so that the same numbers come out on every machine.
BREAKOUT = "+teacher_training=ppo_breakout"
SMALL = {"n_steps": 8, "n_epochs": 1, "batch_size": 16, "precision": "32-true"}


@pytest.fixture(autouse=True)
def as_a_user_runs_it():
    """Single precision; the process's generators are left as they were."""
    dtype, numpy_state = torch.get_default_dtype(), np.random.get_state()
    torch.set_default_dtype(torch.float32)
    with torch.random.fork_rng():
        yield
    np.random.set_state(numpy_state)
    torch.set_default_dtype(dtype)


@pytest.fixture
def small_learner():
    """Build a learner for two games of Breakout."""

    def build(**options):
        settings = AtariSettings("breakout", num_envs=2, fire_on_life_loss=True)
        games = Games(Environments(settings, seed=3, num_threads=1))
        return build_learner(PPOSettings(**{**SMALL, **options}), games, seed=0, device="cpu")

    return build


def compose_training(folder, *overrides):
    """Compose the configuration of a short training."""
    small = [f"ppo.{key}={value}" for key, value in SMALL.items()]
    places = [f"run_dir={folder}", "progress=false", "logger=none", "threads=null"]
    short = ["n_timesteps=64", "log_every=1", "env.settings.num_envs=2"]
    game = [] if any("teacher_training" in given for given in overrides) else [BREAKOUT]
    ends = ["env.settings.max_num_frames_per_episode=200", "export.num_episodes=2"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose(
            "train_teacher",
            [*game, *small, *places, *short, *ends, *overrides],
        )


@pytest.fixture
def composed(tmp_path):
    """Compose the configuration of a short training whose folder is new."""
    return lambda *overrides, name="run": compose_training(tmp_path / name, *overrides)


@pytest.fixture
def without_agent(monkeypatch):
    """Let trainings end without an agent that plays, where it is not looked at."""
    returns = {way: {"mean": 0.0, "standard_error": 0.0} for way in ("sampled", "greedy")}
    monkeypatch.setattr(
        "lightning_sobolev.experiments.teach.training.export_agent",
        lambda *_, **__: {"returns": returns},
    )
