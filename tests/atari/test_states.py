"""An agent with states that it meets, and those that follow."""

from dataclasses import replace

import pytest
import torch

from lightning_sobolev.atari import record, save_agent
from lightning_sobolev.atari.states import agent_states
from lightning_sobolev.doctor.teacher_file import main


@pytest.fixture
def agent(tmp_path, small_teacher, settings):
    path = tmp_path / "agent.safetensors"
    save_agent(path, small_teacher(), settings)
    return str(path)


@pytest.fixture
def recording(tmp_path, small_teacher, settings):
    return record(tmp_path / "pong", settings, small_teacher(), num_states=30, progress=False)


def check(found, count):
    assert found.x.shape == found.next_x.shape == (count, 4, 84, 84)
    # a stack moves on by a frame, and no state stands for its own successor
    assert torch.equal(found.x[:, 1:], found.next_x[:, :-1])
    assert not torch.equal(found.x, found.next_x)
    assert 0.0 <= float(found.x.min()) < float(found.x.max()) <= 1.0


def test_states_of_a_recording_are_drawn_by_the_seed(agent, recording):
    found, again = (agent_states("pong", agent, recording.folder, 12, seed) for seed in (3, 3))
    check(found, 12)
    assert torch.equal(found.x, again.x)
    assert not torch.equal(found.x, agent_states("pong", agent, recording.folder, 12, 4).x)


def test_no_state_is_the_last_of_its_episode(agent, recording):
    goes_on = int((recording.states["end"] == 0).sum())
    check(agent_states("pong", agent, recording.folder, goes_on), goes_on)
    with pytest.raises(ValueError, match=f"states must be at most {goes_on}"):
        agent_states("pong", agent, recording.folder, goes_on + 1)


def test_states_are_played_at_once(agent, monkeypatch):
    monkeypatch.setattr("lightning_sobolev.atari.states._SPAN", 60)
    found = agent_states("pong", agent, None, 5)
    check(found, 5)
    assert torch.equal(found.x, agent_states("pong", agent, None, 5).x)


def test_played_states_are_the_agents_and_cross_no_end(
    agent, small_teacher, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("lightning_sobolev.atari.states._SPAN", 1)  # every state, of three games
    found = agent_states("pong", agent, None, 60)
    check(found, 60)
    save_agent(tmp_path / "other.safetensors", small_teacher(seed=1), settings)
    other = agent_states("pong", str(tmp_path / "other.safetensors"), None, 60)
    assert not torch.equal(found.x, other.x)


def test_another_game_is_refused(agent, recording, small_teacher, settings, tmp_path):
    with pytest.raises(ValueError, match="game must be that of the agent, pong, got 'breakout'"):
        agent_states("breakout", agent, None, 5)
    other = record(
        tmp_path / "other", replace(settings, game="space_invaders"), small_teacher(),
        num_states=5, progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="recording must be one of pong, got 'space_invaders'"):
        agent_states("pong", agent, other.folder, 5)
    with pytest.raises(ValueError, match="states must be at least 1, got 0"):
        agent_states("pong", agent, recording.folder, 0)
    with pytest.raises(ValueError, match="source must be an existing file"):
        agent_states("pong", "nobody.zip", None, 5)


def test_the_program_examines_an_agent(agent, recording, capsys):
    more = ["--agent", agent, "--recording", str(recording.folder), "--states", "8"]
    assert main(["--game", "pong", *more]) == 0
    said = capsys.readouterr().out
    assert all(words in said for words in ("8 states", "12 x 12 cells", "cycles a place", "advice"))
    assert main(["--game", "pong", "--recording", "nowhere"]) == 2
    assert "no recording at nowhere" in capsys.readouterr().out
