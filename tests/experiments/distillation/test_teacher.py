import json
import logging
import math

import lightning.pytorch as pl
import pytest

from lightning_sobolev.atari import AtariSettings, play, save_agent
from lightning_sobolev.experiments.distillation import played as played_module
from lightning_sobolev.experiments.distillation.teacher import CARD, ReplayCheck, agent_teacher
from tests.experiments.distillation.conftest import module_of, results_of

SETTINGS = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=400)


def check_of(agent, tmp_path, **options):
    options = {"num_episodes": 2, **options}
    return ReplayCheck(agent, SETTINGS, tmp_path / "returns", **options)


def begin(check, folder):
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=folder, logger=False)
    check.setup(trainer, pl.LightningModule(), "fit")


def test_return_is_that_of_playing_and_is_looked_up_then(networks, tmp_path, caplog, monkeypatch):
    played = play(networks[0], SETTINGS, num_episodes=2, seed=3)
    with caplog.at_level(logging.INFO):
        check_of(networks[0], tmp_path, seed=3)(networks[0])
    assert f"the teacher's return in pong: {played.mean:.4g} +-" in caplog.text
    monkeypatch.setattr(played_module, "play", None)
    found = results_of(module_of(*networks), [check_of(networks[0], tmp_path, seed=3)], tmp_path)
    assert found["verify/teacher_return"] == played.mean < 0
    assert found["verify/teacher_return_standard_error"] == played.standard_error
    check_of(networks[0], tmp_path, seed=3, min_return=played.mean)(networks[0])
    with pytest.raises(TypeError):  # other games are played
        check_of(networks[0], tmp_path, seed=3, greedy=True)(networks[0])


def test_who_returns_too_little_or_is_somebody_else_is_refused(networks, tmp_path):
    check = check_of(networks[0], tmp_path, min_return=18)
    message = r"must return at least 18 in pong \(verify\.min_return\), got -\d.* in 2 episodes"
    for begins in (lambda: check(networks[0]), lambda: begin(check, tmp_path / "run")):
        with pytest.raises(ValueError, match=message):
            begins()
    assert not (tmp_path / "run" / CARD).exists()
    with pytest.raises(ValueError, match="must be one network, got different weights"):
        check_of(networks[0], tmp_path, num_episodes=0)(networks[1])


@pytest.mark.parametrize("num_episodes", [0, 1])
def test_card_is_left_with_what_was_found(networks, tmp_path, num_episodes):
    path = tmp_path / "agent.safetensors"
    save_agent(path, networks[0], SETTINGS, about={"note": "somebody's"})
    begin(check_of(path, tmp_path, num_episodes=num_episodes), tmp_path / "run")
    left = json.loads((tmp_path / "run" / CARD).read_text())
    assert left["note"] == "somebody's"
    replay = left.get("replay")
    if num_episodes == 0:
        assert replay is None
    else:  # a single episode has no error, and JSON no NaN
        assert math.isfinite(replay["verify/teacher_return"])
        assert replay["verify/teacher_return_standard_error"] is None


def test_an_agent_or_a_network_is_a_teacher(networks):
    assert agent_teacher("pong").network.num_actions == 6
    assert agent_teacher(networks[0]).network is networks[0]


def test_a_return_needs_episodes(tmp_path):
    with pytest.raises(ValueError, match=r"num_episodes must be at least 1 with min_return=3, got"):
        check_of("pong", tmp_path, min_return=3, num_episodes=0)
