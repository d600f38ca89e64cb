import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import AtariSettings, Environments, load_agent, play

SHORT = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=80)


class Fires(torch.nn.Module):
    def forward(self, x):
        return torch.tensor([[0.0, 100.0, 0.0, 0.0, 0.0, 0.0]]).expand(len(x), -1)


def test_returns_are_the_sums_of_unclipped_rewards():
    settings = AtariSettings("space_invaders", num_envs=3, max_num_frames_per_episode=1200)
    played = play(Fires(), settings, num_episodes=3, greedy=True, seed=5)
    environments = Environments(settings, seed=5)
    environments.reset()
    totals, open_ = np.zeros(3), np.ones(3, bool)
    while open_.any():
        result = environments.step(np.ones(3, np.int64))
        totals[open_] += result.rewards[open_]
        open_ &= ~result.ended
    assert played.returns == tuple(totals)
    assert max(played.returns) > 3  # clipped rewards would count shots
    assert played.num_truncated == sum(length == 300 for length in played.lengths)


def test_every_game_plays_a_share_fixed_beforehand(small_teacher):
    played = play(small_teacher(), SHORT, num_episodes=5)
    assert len(played.returns) == 5
    assert played.lengths == (20,) * 5
    assert played.num_truncated == 5
    assert math.isnan(play(small_teacher(), SHORT, num_episodes=1).standard_error)


def test_whole_games_are_decided_by_the_seed_and_told_by_mean_and_error(small_teacher):
    options = {"num_envs": 3, "max_num_frames_per_episode": 4000}
    settings = AtariSettings("breakout", **options)
    played = play(small_teacher(4), settings, num_episodes=6, seed=1)
    returns = np.array(played.returns)
    assert len(set(played.lengths)) > 1
    assert played.num_truncated == 0
    assert_close(played.mean, float(returns.mean()))
    assert_close(played.standard_error, float(returns.std(ddof=1) / math.sqrt(6)))
    lives = AtariSettings("breakout", episodic_life=True, reward_clipping=True, **options)
    assert play(small_teacher(4), lives, num_episodes=6, seed=1) == played
    assert play(small_teacher(4), settings, num_episodes=6, seed=2) != played


def test_bad_input_is_refused(small_teacher):
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        play(small_teacher(), SHORT, num_episodes=0)
    with pytest.raises(ValueError, match=r"network must have 6 outputs for pong .*got 3"):
        play(small_teacher(3), SHORT, num_episodes=1)


@pytest.mark.atari_long
@pytest.mark.parametrize("greedy", [False, True])
def test_the_packaged_pong_agent_wins(greedy):
    network, card = load_agent("pong")
    played = play(network, AtariSettings(**card["environment"]), num_episodes=8, greedy=greedy)
    stored = card["returns"]["greedy" if greedy else "sampled"]
    error = stored["standard_error"] * math.sqrt(stored["num_episodes"] / 8)
    assert abs(played.mean - stored["mean"]) < 5 * error
