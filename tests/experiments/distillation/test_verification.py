import json
import logging
import math

import lightning.pytorch as pl
import pytest
import torch

from lightning_sobolev.atari import AtariSettings, SmallCNN, play
from lightning_sobolev.experiments.distillation.playing import AgentTeacher, agent_teacher
from lightning_sobolev.experiments.distillation.verification import CARD, ReplayCheck, VerifyTeacher
from lightning_sobolev.experiments.run.finished import StartingRun
from lightning_sobolev.teachers import NetworkTeacher

SETTINGS = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=400)


class Data(pl.LightningDataModule):
    """Data that a teacher has made."""

    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallCNN(6)


def start(tmp_path, teacher):
    return StartingRun(pl.LightningModule(), Data(teacher), tmp_path / "run")


def verified(tmp_path, network, *, card=None, **check):
    teacher = AgentTeacher(network, card, ReplayCheck(num_episodes=2, **check))
    step = VerifyTeacher(SETTINGS, teacher, tmp_path / "returns")
    return step(start(tmp_path, network))


def test_return_is_that_of_playing(tmp_path, network, caplog):
    with caplog.at_level(logging.INFO):
        numbers = verified(tmp_path, network, seed=3)
    played = play(network, SETTINGS, num_episodes=2, seed=3, progress=False)
    assert played.mean < 0
    assert numbers["verify/teacher_return"] == played.mean
    assert numbers["verify/teacher_return_standard_error"] == played.standard_error
    assert f"the teacher's return in pong: {played.mean:.4g} +-" in caplog.text


def test_a_return_that_is_reached_passes(tmp_path, network):
    reached = verified(tmp_path, network)["verify/teacher_return"]
    assert verified(tmp_path, network, min_return=reached)["verify/teacher_return"] == reached


def test_a_return_below_the_stated_one_is_an_error(tmp_path, network):
    with pytest.raises(ValueError, match=r"must return at least 18 in pong .*, got -\d.* in 2 epi"):
        verified(tmp_path, network, min_return=18)
    assert not (tmp_path / "run").exists()


def test_the_second_time_it_is_looked_up(tmp_path, network, monkeypatch):
    first = verified(tmp_path, network)
    monkeypatch.setattr("lightning_sobolev.experiments.distillation.returns.play", None)
    assert verified(tmp_path, network) == first
    with pytest.raises(TypeError):
        verified(tmp_path, network, greedy=True)


def test_card_is_left_with_what_was_found(tmp_path, network):
    numbers = verified(tmp_path, network, card={"source": "somebody"})
    left = json.loads((tmp_path / "run" / CARD).read_text())
    assert left == {"source": "somebody", "replay": numbers}


def test_error_of_a_single_episode_is_null(tmp_path, network):
    teacher = AgentTeacher(network, {}, ReplayCheck(num_episodes=1))
    numbers = VerifyTeacher(SETTINGS, teacher, tmp_path / "returns")(start(tmp_path, network))
    assert math.isnan(numbers["verify/teacher_return_standard_error"])
    assert '"verify/teacher_return_standard_error": null' in (tmp_path / "run" / CARD).read_text()


@pytest.mark.parametrize("verify", [None, ReplayCheck(num_episodes=0)])
def test_nothing_is_played_where_nothing_is_asked(tmp_path, network, monkeypatch, verify):
    monkeypatch.setattr("lightning_sobolev.experiments.distillation.returns.play", None)
    for teacher in (agent_teacher(network, verify), NetworkTeacher(network)):
        step = VerifyTeacher(SETTINGS, teacher, tmp_path / "returns")
        assert step(start(tmp_path, network)) == {}


def test_data_of_another_teacher_are_refused(tmp_path, network):
    step = VerifyTeacher(SETTINGS, NetworkTeacher(network), tmp_path / "returns")
    with pytest.raises(ValueError, match="must be one network, got different weights"):
        step(start(tmp_path, SmallCNN(6)))


def test_packaged_teacher_has_its_card():
    assert agent_teacher("pong").card["num_actions"] == 6


def test_a_return_needs_episodes():
    with pytest.raises(ValueError, match=r"num_episodes must be at least 1 with min_return=3, got"):
        ReplayCheck(min_return=3, num_episodes=0)
    with pytest.raises(ValueError, match=r"num_episodes must be at least 0 .*, got -1"):
        ReplayCheck(num_episodes=-1)
