import json
from itertools import chain

import gymnasium
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import Behavior
from lightning_sobolev.policies import (
    EnvSettings,
    Head,
    PolicyRecording,
    play_policy,
    record_policy,
    visited_answers,
)
from lightning_sobolev.policies import recording as module
from tests.policies._policies import small_policy

CARTPOLE = EnvSettings("CartPole-v1", num_envs=3, max_episode_steps=40)
PENDULUM = EnvSettings("Pendulum-v1", num_envs=2, max_episode_steps=15)
KINDS = [(CARTPOLE, small_policy()), (PENDULUM, small_policy(3, 2, deviations="constant"))]


def record(folder, settings=CARTPOLE, teacher=KINDS[0][1], num_states=200, **how):
    return record_policy(folder, settings, teacher, num_states=num_states, progress=False, **how)


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize(("settings", "teacher"), KINDS, ids=["choice", "gaussian"])
def test_what_is_recorded_happens_again_in_a_single_environment(settings, teacher, tmp_path):
    recording = record(tmp_path, settings, teacher, num_states=100, seed=4)
    head = Head.for_env(settings)
    ends = np.cumsum([*chain(*recording.episode_lengths)])
    assert ends[-1] == recording.num_states >= 100
    for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        shard, env_number = divmod(number, settings.num_envs)
        seed = np.random.SeedSequence((4, shard)).generate_state(1)[0]
        seeds = np.random.SeedSequence(int(seed)).generate_state(settings.num_envs) >> 1
        env = gymnasium.make(settings.id, max_episode_steps=settings.max_episode_steps)
        seen, _ = env.reset(seed=int(seeds[env_number]))
        for row in range(start, end):
            np.testing.assert_array_equal(recording.observations[row], np.float32(seen))
            action = head.actions(recording.actions[row : row + 1])[0]
            seen, reward, terminated, truncated, _ = env.step(action)
            assert recording.rewards[row] == np.float32(reward)
            assert recording.ends[row] == (1 if terminated else 2 if truncated else 0)
        assert terminated or truncated
    answers = head.answers(teacher(torch.from_numpy(recording.observations))).detach()
    assert_close(torch.from_numpy(recording.answers), answers)


@pytest.mark.parametrize(("settings", "teacher"), KINDS, ids=["choice", "gaussian"])
def test_a_longer_recording_is_the_shorter_one_and_more(settings, teacher, tmp_path):
    whole = record(tmp_path / "whole", settings, teacher, num_states=150)
    short = record(tmp_path / "short", settings, teacher, num_states=20)
    assert short.num_states < whole.num_states
    before = bytes_of(tmp_path / "short")
    record(tmp_path / "short", settings, teacher, num_states=150)
    after = bytes_of(tmp_path / "short")
    assert after == bytes_of(tmp_path / "whole")
    assert all(after[name] == one for name, one in before.items() if name != "index.json")


def test_what_was_broken_off_goes_on(tmp_path, monkeypatch):
    record(tmp_path / "whole")
    write, count = module._write_index, 0

    def killed(*arguments):
        nonlocal count
        count += 1
        if count == 2:  # a shard is there, which no index names
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(module, "_write_index", killed)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "broken")
    assert "shard-00001.npz" in bytes_of(tmp_path / "broken")
    assert len(PolicyRecording(tmp_path / "broken").episode_lengths) == 1
    monkeypatch.undo()
    (tmp_path / "broken" / "shard-00001.npz.0123abcd.tmp").write_text("half")
    record(tmp_path / "broken")
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")


def test_a_finished_recording_is_opened_and_another_one_made_anew(tmp_path, monkeypatch):
    first = record(tmp_path)
    before = bytes_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "VectorEnvironments", None)
        record(tmp_path)
    assert bytes_of(tmp_path) == before
    other = record(tmp_path, seed=1)
    assert other.identity["seed"] == 1
    assert not np.array_equal(first.observations[:20], other.observations[:20])
    record(tmp_path, remake=True)
    assert bytes_of(tmp_path) == before


def test_another_seed_draws_other_actions(tmp_path):
    even = small_policy()
    torch.nn.init.zeros_(even.head.weight)
    torch.nn.init.zeros_(even.head.bias)
    first, other = (record(tmp_path / str(seed), teacher=even, seed=seed) for seed in (0, 1))
    # whatever was seen; no pole falls in fewer steps
    assert not np.array_equal(first.actions[:8], other.actions[:8])


@pytest.mark.parametrize("name", ["shard-00000.npz", "index.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_file_is_named(name, how, tmp_path):
    record(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    if (name, how) == ("index.json", "gone"):
        with pytest.raises(FileNotFoundError, match="no recording at"):
            PolicyRecording(tmp_path)
        return
    for use in (PolicyRecording, lambda folder: record(folder, num_states=10_000)):
        with pytest.raises(ValueError, match=rf"damaged recording: .*{name}.*remake=True"):
            use(tmp_path)


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(ValueError, match=r"folder must hold a recording or nothing, .*thesis"):
        record(tmp_path, remake=True)
    assert (tmp_path / "thesis.tex").read_text() == "dear"


def test_a_player_visits_and_the_teacher_answers(tmp_path):
    teacher, player = small_policy(), small_policy(activation="relu")
    with torch.no_grad():
        player.head.bias.copy_(torch.tensor([9.0, -9.0]))  # always to the left
    behavior = Behavior(beta=0.0, greedy=True)
    recording = record(tmp_path, teacher=teacher, behavior=behavior, player=player)
    assert (recording.actions == 0).all()
    answers = torch.log_softmax(teacher(torch.from_numpy(recording.observations)), -1).detach()
    assert_close(torch.from_numpy(recording.answers), answers)
    with pytest.raises(ValueError, match="player must be given exactly where beta is below 1"):
        record(tmp_path, behavior=behavior)


def test_networks_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"teacher must have 2 outputs .*got 3"):
        record(tmp_path, teacher=small_policy(4, 3))
    broken = small_policy()
    with torch.no_grad():
        broken.head.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="teacher must answer with finite numbers"):
        record(tmp_path, teacher=broken)
    with pytest.raises(ValueError, match=r"network must answer \[3, outputs\], got \[\]"):
        play_policy(Sum(), CARTPOLE, num_episodes=3, progress=False)
    with pytest.raises(ValueError, match="num_states must be a number >= 1 or a split, got 0"):
        record(tmp_path, num_states=0)


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum()


def test_returns_are_the_sums_of_the_rewards():
    teacher = small_policy()
    played = play_policy(teacher, CARTPOLE, num_episodes=7, seed=2, progress=False)
    assert len(played.returns) == 7
    assert played.returns == played.lengths  # a reward of 1 a step
    assert played.num_truncated == sum(length == 40 for length in played.lengths)
    again = play_policy(teacher, CARTPOLE, num_episodes=7, seed=2, progress=False)
    assert again == played


def test_answers_are_compared_where_the_player_goes():
    player, teacher = small_policy(), small_policy(activation="relu")
    answers = visited_answers(player, teacher, CARTPOLE, num_states=30, progress=False)
    assert answers.player.shape == answers.teacher.shape == (10, 3, 2)
    assert not np.allclose(answers.player, answers.teacher)
    same = visited_answers(player, player, CARTPOLE, num_states=30, progress=False)
    np.testing.assert_array_equal(same.player, same.teacher)
    np.testing.assert_array_equal(same.player, answers.player)


def test_answers_that_are_no_tensor_are_named(tmp_path):
    teacher = small_policy()
    teacher.forward = lambda x: (x, x)
    with pytest.raises(ValueError, match="answers of teacher must be a tensor, got 'tuple'"):
        record(tmp_path, teacher=teacher)
    with pytest.raises(ValueError, match=r"teacher must take observations of shape \[3, 4\]: "):
        record(tmp_path, teacher=torch.nn.Linear(5, 2))


@pytest.mark.parametrize("left", [{}, {"format": 1}, {"format": 1, "identity": {}}])
def test_an_index_that_agrees_with_itself_and_says_too_little_is_named(left, tmp_path):
    content = {**left, "sha256": module.checksum(left)}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"must have format 1, got None|damaged recording: .* \(lacks \["
    ):
        PolicyRecording(tmp_path)
