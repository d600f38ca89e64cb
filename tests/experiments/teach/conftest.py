import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from lightning_sobolev.atari import AtariSettings, Environments
from lightning_sobolev.experiments.run.conf import config_folder
from lightning_sobolev.experiments.teach.policy import build_learner
from lightning_sobolev.experiments.teach.vec_env import AtariVecEnv

# A few updates of a few steps; float32, so that the same numbers come out on every machine.
SMALL = {"n_steps": 8, "n_epochs": 1, "batch_size": 16}
OVERRIDES = (
    *(f"ppo.{key}={value}" for key, value in SMALL.items()),
    *("precision=32-true", "logger=none", "threads=1", "log_every=1", "++env.settings.num_envs=2"),
    *("++env.settings.max_num_frames_per_episode=200", "export.num_episodes=2"),
    "export.num_envs=2",
)


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
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        usual = compose("train_teacher").ppo

    def build(precision="32-true", **ppo):
        settings = AtariSettings("breakout", num_envs=2, fire_on_life_loss=True)
        env = AtariVecEnv(Environments(settings, seed=3, num_threads=1))
        return build_learner({**usual, **SMALL, **ppo}, env, seed=0, precision=precision)

    return build


def compose_training(folder, *overrides):
    chosen = any("teacher_training" in given for given in overrides)
    game = () if chosen else ("+teacher_training=ppo_breakout",)
    given = (*game, *OVERRIDES, f"run_dir={folder}", "n_timesteps=64", *overrides)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train_teacher", list(given))


@pytest.fixture
def composed(tmp_path):
    return lambda *overrides, name="run": compose_training(tmp_path / name, *overrides)


@pytest.fixture
def without_agent(monkeypatch):
    """Let trainings end without an agent that plays, where it is not looked at."""
    returns = {kind: {"mean": 0.0, "standard_error": 0.0} for kind in ("sampled", "greedy")}
    monkeypatch.setattr(
        "lightning_sobolev.experiments.teach.train.export_agent",
        lambda *_, **__: {"returns": returns},
    )
