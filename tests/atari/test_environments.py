import dataclasses

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv

from lightning_sobolev.atari import AtariSettings, Environments, games, num_actions


def roll(settings, seed, steps=60, **options):
    environments = Environments(settings, seed, **options)
    stacks = [environments.reset()]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.integers(0, environments.num_actions, settings.num_envs)
        stacks.append(environments.step(actions).stacks)
    return np.stack(stacks)


def idle(steps, game, **settings):
    environments = Environments(AtariSettings(game, **settings), seed=0)
    environments.reset()
    chosen = np.zeros(settings["num_envs"], np.int64)
    return [environments.step(chosen) for _ in range(steps)]


def test_settings_reach_the_environment_bit_for_bit():
    shown = {"num_envs": 2, "frameskip": 3, "img_height": 60, "img_width": 50, "stack_num": 2}
    reference = AtariVectorEnv("breakout", noop_max=5, **shown)
    seeds = (np.random.SeedSequence(7).generate_state(2) >> 1).astype(np.int32)
    expected = [reference.reset(seed=seeds)[0]]
    rng = np.random.default_rng(0)
    expected += [reference.step(rng.integers(0, 4, 2))[0] for _ in range(60)]
    found = roll(AtariSettings("breakout", noop_max=5, **shown), seed=7)
    np.testing.assert_array_equal(found, np.stack(expected))


def test_a_seed_decides_the_pictures_and_the_number_of_threads_does_not():
    settings = AtariSettings("breakout", num_envs=3, sticky=True)
    first = roll(settings, seed=1, num_threads=1)
    np.testing.assert_array_equal(first, roll(settings, seed=1, num_threads=2))
    plain = dataclasses.replace(settings, sticky=False)
    for other, seed in ((settings, 2), (plain, 1)):
        assert not np.array_equal(first, roll(other, seed=seed))


def test_the_stack_after_an_end_is_the_first_of_the_next_episode():
    # a restart that took a step of its own would leave 9 of the 10 to the next episode
    steps = idle(20, "pong", num_envs=2, max_num_frames_per_episode=40)
    for number, step in enumerate(steps, start=1):
        assert step.ended.all() == step.truncated.all() == (number % 10 == 0)
        assert not step.terminated.any()
        if step.ended.all():
            assert (step.stacks[:, :-1] == 0).all()
            assert (step.stacks[:, -1] > 0).any()


def test_fire_on_life_loss_launches_every_ball():
    steps = idle(300, "breakout", num_envs=2, fire_on_life_loss=True)
    lost = np.array([step.lost_life for step in steps])
    ended = np.array([step.terminated for step in steps])
    for env in range(2):
        first, second = np.flatnonzero(ended[:, env])[:2]
        # five lives: four are lost on the way, the fifth with the game
        assert lost[first + 1 : second, env].sum() == 4
        assert not lost[second, env]


def test_fire_on_life_loss_leaves_all_other_actions_alone():
    plain, fires = (
        AtariSettings("breakout", num_envs=2, fire_on_life_loss=fire) for fire in (False, True)
    )
    np.testing.assert_array_equal(roll(plain, seed=0, steps=20), roll(fires, seed=0, steps=20))
    with pytest.raises(ValueError, match="fire_on_life_loss must be false for freeway"):
        Environments(AtariSettings("freeway", num_envs=1, fire_on_life_loss=True), seed=0)


def test_last_is_what_an_ended_game_showed():
    steps = idle(700, "space_invaders", num_envs=2)
    assert all((step.last is not None) == step.ended.any() for step in steps)
    at = next(number for number, step in enumerate(steps) if step.ended.any())
    env = int(np.flatnonzero(steps[at].ended)[0])
    np.testing.assert_array_equal(steps[at].last[env, :-1], steps[at - 1].stacks[env, 1:])
    assert (steps[at].stacks[env, :-1] == 0).all()


def test_pong_has_six_actions_in_this_order():
    environments = Environments(AtariSettings("pong", num_envs=2), seed=0)
    expected = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
    assert environments.action_meanings == expected
    environments.reset()
    for wrong in ([0, 0, 0], [0, 6], [-1, 0]):
        with pytest.raises(ValueError, match=r"actions must be 2 in 0\.\.5, got"):
            environments.step(np.array(wrong))


@pytest.mark.parametrize("game", ["breakout", "freeway"])
@pytest.mark.parametrize("full", [False, True])
def test_actions_are_counted_without_a_game(game, full):
    settings = AtariSettings(game, num_envs=1, full_action_space=full)
    assert num_actions(settings) == Environments(settings, seed=0, num_threads=1).num_actions
    assert (num_actions(settings) == 18) == full


@pytest.mark.parametrize(
    ("game", "hint"), [("pongg", "pong"), ("SpaceInvaders", "space_invaders"), ("!", "one of 1")]
)
def test_unknown_game_is_refused_with_close_matches(game, hint):
    assert {"pong", "breakout", "ms_pacman"} <= set(games())
    with pytest.raises(ValueError, match=f"game must name a game.*{hint}.*got '{game}'"):
        AtariSettings(game)


@pytest.mark.parametrize(
    ("name", "value", "least"), [("num_envs", 0, 1), ("noop_max", -1, 0), ("stack_num", 2.5, 1)]
)
def test_numbers_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= {least}, got {value}"):
        AtariSettings("pong", **{name: value})
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        Environments(AtariSettings("pong"), seed=-1)
