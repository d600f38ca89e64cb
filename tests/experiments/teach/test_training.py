import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import load_agent
from lightning_sobolev.experiments.run.history import read_curves
from lightning_sobolev.experiments.run.resuming import LAST
from lightning_sobolev.experiments.teach import train_teacher
from lightning_sobolev.experiments.teach.checkpoints import (
    load_checkpoint,
    restore,
    save_checkpoint,
)
from lightning_sobolev.experiments.teach.keeper import Keeper
from tests.experiments.teach.conftest import compose_training

ROOT = Path(__file__).parents[3]


def checkpoint(cfg):
    return load_checkpoint(Path(cfg.run_dir) / LAST)


def stop_after(monkeypatch, steps, reason):
    """Let trainings stop when they have done so many steps."""
    known = Keeper._reason
    monkeypatch.setattr(
        Keeper,
        "_reason",
        lambda self: reason if self.model.num_timesteps >= steps else known(self),
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training whose time was up after 32 of 64 steps: its configuration."""
    cfg = compose_training(tmp_path_factory.mktemp("stopped") / "first")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        stop_after(patch, 32, "max_minutes")
        assert train_teacher(cfg) == {}
    return cfg


def test_a_training_leaves_an_agent_that_teaches(composed):
    cfg = composed("export.num_envs=2")
    metrics = train_teacher(cfg)
    folder = Path(cfg.run_dir)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 64
    path, trained = folder / "breakout.safetensors", checkpoint(cfg)["policy"]
    network, card = load_agent(path)
    assert_close(network.body[0].weight, trained["features_extractor.body.0.weight"])
    assert_close(network.head.weight, trained["action_net.weight"].half().float(), rtol=0, atol=0)
    assert path.stat().st_size < 4 * 2**20
    assert card["actions"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert card["same_actions"] == [[0, 1]]
    assert card["environment"]["num_envs"] == 2
    assert card["trained"]["steps"] == 64
    assert card["trained"]["pieces"][0]["seed"] == 0
    assert card["versions"]["torch"] == torch.__version__
    assert card["returns"]["sampled"]["num_episodes"] == 2
    assert card["returns"]["greedy"]["mean"] == metrics["test/teacher_return_greedy"]
    assert card["half_precision"]["largest_log_prob_error"] < 1e-2
    assert [step for step, _, _ in read_curves(folder / "curves.csv")["train/loss"]] == [32, 48, 64]


def test_time_that_is_up_leaves_a_checkpoint_and_no_numbers(stopped):
    assert checkpoint(stopped)["num_timesteps"] == 32
    assert not (Path(stopped.run_dir) / "metrics.json").exists()


@pytest.mark.usefixtures("without_agent")
def test_a_training_goes_on_from_the_last_checkpoint(stopped):
    before = checkpoint(stopped)
    assert before["optimizer"]["state"][0]["step"] == 2  # mini-batches
    cfg = compose_training(Path(stopped.run_dir).parent / "second", "ckpt=last")
    assert train_teacher(cfg)["steps"] == 64
    after = checkpoint(cfg)
    assert after["optimizer"]["state"][0]["step"] == 4
    assert [piece["first_step"] for piece in after["pieces"]] == [0, 32]
    assert after["seconds"] > before["seconds"]
    # the curve holds both runs, and the learning rate goes on falling to zero over all 64 steps
    rates = read_curves(Path(cfg.run_dir) / "curves.csv")["train/learning_rate"]
    assert [step for step, _, _ in rates] == [32, 64]
    assert rates[-1][2] == pytest.approx(2.5e-4 * 16 / 64)


@pytest.mark.usefixtures("without_agent")
def test_resuming_is_a_function_of_the_checkpoint(stopped, composed):
    runs = [composed(f"ckpt={Path(stopped.run_dir) / LAST}", name=name) for name in ("a", "b")]
    for number, cfg in enumerate(runs):
        np.random.seed(number)
        train_teacher(cfg)
    one, two = (checkpoint(cfg)["policy"] for cfg in runs)
    for name, weight in one.items():
        assert_close(two[name], weight, rtol=0, atol=0)
    started = checkpoint(stopped)["policy"]
    assert not torch.equal(one["action_net.weight"], started["action_net.weight"])


def test_a_restored_learner_goes_on_as_the_saved_one(small_learner, tmp_path):
    # both go on with new games: those under way cannot be saved
    learner = small_learner()
    games = small_learner().env
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


def test_ctrl_c_saves_and_says_how_to_go_on(composed, monkeypatch, caplog):
    known = Keeper._on_step

    def press(self):
        if self.num_timesteps == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return known(self)

    monkeypatch.setattr(Keeper, "_on_step", press)
    handler = signal.getsignal(signal.SIGINT)
    cfg = composed()
    with caplog.at_level(logging.WARNING), pytest.raises(SystemExit, match="1"):
        train_teacher(cfg)
    assert signal.getsignal(signal.SIGINT) is handler
    # the update that was under way is finished, nothing half done is kept
    assert checkpoint(cfg)["num_timesteps"] == 32
    assert f"interrupted at step 32; to go on: python {sys.argv[0]} ckpt=" in caplog.text


@pytest.mark.usefixtures("without_agent")
def test_a_return_that_is_enough_ends_the_training(composed):
    # games of 50 steps: the third update has seen two of them
    cfg = composed("n_timesteps=640", "stop_at=0", "ppo.num_recent_games=2")
    metrics = train_teacher(cfg)
    assert 96 <= metrics["steps"] < 640


def test_the_agent_of_a_checkpoint_is_stored_without_training(stopped, composed):
    saved = Path(stopped.run_dir) / LAST
    cfg = composed(f"ckpt={saved}", "train=false", "export.num_envs=2")
    assert train_teacher(cfg)["steps"] == 32
    network, card = load_agent(Path(cfg.run_dir) / "breakout.safetensors")
    assert card["trained"]["seconds"] == round(checkpoint(stopped)["seconds"])
    assert [piece["first_step"] for piece in card["trained"]["pieces"]] == [0]
    bias = checkpoint(stopped)["policy"]["action_net.bias"]
    assert_close(network.head.bias, bias.half().float(), rtol=0, atol=0)


@pytest.mark.usefixtures("without_agent")
def test_kill_9_loses_no_more_than_the_last_interval(composed, tmp_path):
    cfg = composed("checkpoint_minutes=0", "n_timesteps=1000000", name="killed")
    overrides = [
        *("n_timesteps=1000000", "checkpoint_minutes=0", "ppo.n_steps=8", "ppo.batch_size=16"),
        *("ppo.n_epochs=1", "env.settings.num_envs=2", f"run_dir={cfg.run_dir}", "logger=none"),
        *("ppo.precision=32-true", "env.settings.max_num_frames_per_episode=200"),
        f"hydra.run.dir={cfg.run_dir}",
    ]
    script = [sys.executable, str(ROOT / "scripts" / "train_teacher.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    saved, deadline = Path(cfg.run_dir) / LAST, time.monotonic() + 120
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [*script, "+teacher_training=ppo_breakout", *overrides],
            cwd=tmp_path,
            env=environment,
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
    done = checkpoint(cfg)["num_timesteps"]
    assert done > 0
    again = composed(f"n_timesteps={done + 32}", "ckpt=last", name="again")
    assert train_teacher(again)["steps"] == done + 32


def test_another_game_is_refused(stopped, composed):
    cfg = composed(f"ckpt={Path(stopped.run_dir) / LAST}", "env.settings.sticky=true")
    with pytest.raises(ValueError, match="training with sticky=True, got sticky=False"):
        train_teacher(cfg)


@pytest.mark.usefixtures("without_agent")
def test_a_training_begins_with_a_stored_agent(composed):
    # too small a step to change any weight: what comes out is what was begun with
    whole_games = "env.settings.max_num_frames_per_episode=108000"
    pong = ["+teacher_training=ppo_pong", "ppo.learning_rate=1e-30", "start=pong", whole_games]
    cfg = composed(*pong)
    train_teacher(cfg)
    trained, (network, card) = checkpoint(cfg), load_agent("pong")
    policy = trained["policy"]
    for name, weight in network.state_dict().items():
        learned = name.replace("body.", "features_extractor.body.").replace("head.", "action_net.")
        assert_close(policy[learned], weight)
    assert policy["value_net.weight"].abs().max() < 1e-20
    assert trained["pieces"][0]["start"] == "pong"
    assert trained["pieces"][0]["start_sha256"] == card["sha256"]
    again = composed(*pong, f"ckpt={Path(cfg.run_dir) / LAST}", "n_timesteps=96", name="again")
    assert train_teacher(again)["steps"] == 96
    assert "start" not in checkpoint(again)["pieces"][1]


def test_an_agent_of_another_game_is_refused(composed):
    with pytest.raises(ValueError, match="start must be of a training with game='breakout'"):
        train_teacher(composed("start=pong"))


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_checkpoint_is_refused(composed, tmp_path, content):
    path = tmp_path / "bad.ckpt"
    if content is None:
        torch.save({"format": 0}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt must be a (whole )?checkpoint.*bad\.ckpt"):
        train_teacher(composed(f"ckpt={path}"))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"format": 1, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="ckpt must be a checkpoint"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_what_is_missing_is_named(composed, monkeypatch):
    with pytest.raises(ValueError, match="ckpt must name a checkpoint where train=false"):
        train_teacher(composed("train=false"))
    cfg = composed()
    cfg.env = None
    with pytest.raises(ValueError, match=r"a game must be chosen, e\.g\. \+teacher_training="):
        train_teacher(cfg)
    monkeypatch.setattr("lightning_sobolev.experiments.teach.find_spec", {}.get)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-sobolev\[sb3\]'"):
        train_teacher(composed())


@pytest.mark.usefixtures("without_agent")
def test_mean_return_is_that_of_whole_games(composed):
    # 200 frames: every game is cut after 50 steps, and its return is the sum over all of them
    cfg = composed("n_timesteps=160", "ppo.num_recent_games=4")
    train_teacher(cfg)
    games = checkpoint(cfg)["recent_games"]
    assert {game["l"] for game in games} <= set(range(1, 51))
    mean = read_curves(Path(cfg.run_dir) / "curves.csv")["train/return"][-1][2]
    assert math.isclose(mean, np.mean([game["r"] for game in games]))
