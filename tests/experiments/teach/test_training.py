import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.testing import assert_close

from lightning_sobolev.atari import load_agent
from lightning_sobolev.experiments import teach
from lightning_sobolev.experiments.run.checkpoints import LAST
from lightning_sobolev.experiments.teach import train
from lightning_sobolev.experiments.teach.callback import BetweenUpdates
from lightning_sobolev.experiments.teach.checkpoints import (
    load_checkpoint,
    restore,
    save_checkpoint,
)
from lightning_sobolev.experiments.teach.train import train_teacher
from tests.experiments.teach.conftest import OVERRIDES, compose_training

ROOT = Path(__file__).parents[3]


def checkpoint(cfg):
    return load_checkpoint(Path(cfg.run_dir) / LAST)


def curves(cfg):
    return pd.read_csv(Path(cfg.run_dir) / "curves.csv")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training whose time was up after 32 of 64 steps: its configuration."""
    cfg = compose_training(tmp_path_factory.mktemp("stopped") / "first")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(
            train,
            "_limit",
            lambda _, learner, __: "max_minutes" if learner.num_timesteps >= 32 else None,
        )
        assert train_teacher(cfg) == {}
    return cfg


def test_time_that_is_up_ends_the_run_without_numbers(composed):
    cfg = composed("max_minutes=1e-9")
    assert train_teacher(cfg) == {}
    assert checkpoint(cfg)["num_timesteps"] == 0
    assert not (Path(cfg.run_dir) / "metrics.json").exists()


@pytest.mark.usefixtures("without_agent")
def test_last_is_a_training_of_the_same_settings_but_for_its_length(stopped):
    earlier = Path(stopped.run_dir)
    (earlier / ".hydra").mkdir()
    OmegaConf.save(stopped, earlier / ".hydra" / "config.yaml")
    storing = compose_training(earlier, "ckpt=last", "train=false", "n_timesteps=32")
    assert train_teacher(storing)["steps"] == 32
    with pytest.raises(ValueError, match=r"same settings.*ppo\.gamma: 0\.99, not 0\.9"):
        train_teacher(compose_training(earlier.parent / "other", "ckpt=last", "ppo.gamma=0.9"))


def test_the_agent_of_a_checkpoint_is_stored_without_training(stopped, composed):
    cfg = composed(f"ckpt={Path(stopped.run_dir) / LAST}", "train=false")
    metrics = train_teacher(cfg)
    folder, saved = Path(cfg.run_dir), checkpoint(stopped)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 32
    path, trained = folder / "breakout.safetensors", saved["policy"]
    network, card = load_agent(path)
    assert_close(network.body[0].weight, trained["features_extractor.body.0.weight"])
    assert_close(network.head.weight, trained["action_net.weight"].half().float(), rtol=0, atol=0)
    assert path.stat().st_size < 4 * 2**20
    assert card["actions"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert card["same_actions"] == [[0, 1]]
    assert card["environment"]["num_envs"] == 2
    assert card["trained"]["steps"] == 32
    assert card["trained"]["seconds"] == round(saved["seconds"])
    assert [(p["first_step"], p["seed"]) for p in card["trained"]["pieces"]] == [(0, 0)]
    assert card["versions"]["torch"] == torch.__version__
    assert card["returns"]["sampled"]["num_episodes"] == 2
    assert card["returns"]["greedy"]["mean"] == metrics["test/teacher_return_greedy"]


@pytest.mark.usefixtures("without_agent")
def test_a_training_goes_on_from_the_last_checkpoint(stopped):
    before = checkpoint(stopped)
    assert before["num_timesteps"] == 32
    assert before["optimizer"]["state"][0]["step"] == 2  # mini-batches
    cfg = compose_training(Path(stopped.run_dir).parent / "second", "ckpt=last")
    assert train_teacher(cfg)["steps"] == 64
    after = checkpoint(cfg)
    assert after["optimizer"]["state"][0]["step"] == 4
    assert [piece["first_step"] for piece in after["pieces"]] == [0, 32]
    assert after["seconds"] > before["seconds"]
    # the curve holds both runs, and the learning rate goes on falling to zero over all 64 steps
    rates = curves(cfg)[["step", "train/learning_rate"]].dropna()
    assert list(rates["step"]) == [32, 64]
    assert rates["train/learning_rate"].iloc[-1] == pytest.approx(2.5e-4 * 16 / 64)
    assert curves(cfg)["seconds"].is_monotonic_increasing


def test_a_restored_learner_goes_on_as_the_saved_one(small_learner, tmp_path):
    # both go on with new games: those under way cannot be saved
    learner, games = small_learner(), small_learner().env
    learner.learn(32)
    save_checkpoint(tmp_path / "last.ckpt", learner, {})
    learner.set_env(games)
    learner.learn(32, reset_num_timesteps=False)
    other = small_learner()
    restore(other, load_checkpoint(tmp_path / "last.ckpt"))
    other.learn(32, reset_num_timesteps=False)
    assert learner.num_timesteps == other.num_timesteps == 64
    for one, two in zip(learner.policy.parameters(), other.policy.parameters(), strict=True):
        assert_close(one, two, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("number", "pressed_at", "saved"), [(signal.SIGINT, 20, 32), (signal.SIGTERM, 60, 64)]
)
def test_an_interrupt_ends_the_update_saves_and_says_how_to_go_on(
    composed, monkeypatch, caplog, number, pressed_at, saved
):
    def press(self):
        if self.num_timesteps == pressed_at:
            os.kill(os.getpid(), number)
        return True

    monkeypatch.setattr(BetweenUpdates, "_on_step", press)
    handler = signal.getsignal(number)
    cfg = composed()
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit, match="1"):
        train_teacher(cfg)
    assert signal.getsignal(number) is handler
    assert checkpoint(cfg)["num_timesteps"] == saved
    assert checkpoint(cfg)["optimizer"]["state"][0]["step"] == saved // 16
    assert f"interrupted at step {saved}; to go on: python {sys.argv[0]} ckpt=" in caplog.text


@pytest.mark.usefixtures("without_agent")
def test_a_return_that_is_enough_ends_the_training(composed):
    # games of 50 steps: the seventh update has seen two of them
    cfg = composed("n_timesteps=640", "stop_at=0", "ppo.stats_window_size=2")
    metrics = train_teacher(cfg)
    assert 96 <= metrics["steps"] < 640
    # 200 frames: every game is cut after 50 steps, and its return is the sum over all of them
    games = checkpoint(cfg)["recent_games"]
    assert {game["l"] for game in games} <= set(range(1, 51))
    assert curves(cfg)["train/return"].iloc[-1] == np.mean([game["r"] for game in games])


@pytest.mark.usefixtures("without_agent")
def test_kill_9_loses_no_more_than_the_last_interval(composed, tmp_path):
    folder = tmp_path / "killed"
    overrides = [*OVERRIDES, "n_timesteps=1000000", "checkpoint_minutes=0"]
    script = [sys.executable, str(ROOT / "scripts" / "train_teacher.py")]
    game = ["+teacher_training=ppo_breakout", f"hydra.run.dir={folder}"]
    saved, deadline = folder / LAST, time.monotonic() + 120
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [*script, *game, *overrides],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
        while not saved.is_file():
            assert process.poll() is None, (tmp_path / "output").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)  # in the midst of later saves
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = load_checkpoint(saved)["num_timesteps"]
    assert done > 0
    again = composed(f"n_timesteps={done + 32}", "ckpt=last", name="again")
    assert train_teacher(again)["steps"] == done + 32


@pytest.mark.usefixtures("without_agent")
def test_a_training_begins_with_a_stored_agent(composed):
    # too small a step to change any weight: what comes out is what was begun with
    whole_games = "++env.settings.max_num_frames_per_episode=108000"
    pong = ["+teacher_training=ppo_pong", "ppo.learning_rate=1e-30", "start=pong", whole_games]
    cfg = composed(*pong, "n_timesteps=16")
    train_teacher(cfg)
    trained, (network, card) = checkpoint(cfg), load_agent("pong")
    policy = trained["policy"]
    for name, weight in network.state_dict().items():
        learned = name.replace("body.", "features_extractor.body.").replace("head.", "action_net.")
        assert_close(policy[learned], weight)
    assert policy["value_net.weight"].abs().max() < 1e-20
    assert trained["pieces"][0]["start"] == "pong"
    assert trained["pieces"][0]["start_sha256"] == card["sha256"]
    again = composed(*pong, f"ckpt={Path(cfg.run_dir) / LAST}", "n_timesteps=32", name="again")
    assert train_teacher(again)["steps"] == 32
    assert "start" not in checkpoint(again)["pieces"][1]


def test_another_game_is_refused(stopped, composed):
    cfg = composed(f"ckpt={Path(stopped.run_dir) / LAST}", "++env.settings.sticky=true")
    with pytest.raises(ValueError, match="training with sticky=True, got sticky=False"):
        train_teacher(cfg)
    with pytest.raises(ValueError, match="start must be of a training with game='breakout'"):
        train_teacher(composed("start=pong"))


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [b"", b"nonsense", {"format": 0}, {"format": 1, "x": Evil()}])
def test_a_damaged_or_foreign_checkpoint_is_refused(composed, tmp_path, capsys, content):
    path = tmp_path / "bad.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"ckpt must be a (whole )?checkpoint.*bad\.ckpt"):
        train_teacher(composed(f"ckpt={path}"))
    assert "executed" not in capsys.readouterr().out


def test_what_is_missing_is_named(composed):
    with pytest.raises(ValueError, match="ckpt must name a checkpoint where train=false"):
        train_teacher(composed("train=false"))
    with pytest.raises(ValueError, match="max_minutes must be positive or null, got 0"):
        train_teacher(composed("max_minutes=0"))
    cfg = composed()
    cfg.env = None
    with pytest.raises(ValueError, match=r"a game must be chosen, e\.g\. \+teacher_training="):
        train_teacher(cfg)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", {}.get)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-sobolev\[sb3\]'"):
        importlib.reload(teach)
