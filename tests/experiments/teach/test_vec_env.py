import numpy as np
import pytest

from lightning_sobolev.atari import AtariSettings, Environments
from lightning_sobolev.experiments.teach.vec_env import AtariVecEnv

BREAKOUT = AtariSettings("breakout", num_envs=2, fire_on_life_loss=True)


def played(settings, steps, **options):
    """Play at random; yield what the adapter and the environments below it say of the same step."""
    env = AtariVecEnv(Environments(settings, 0, num_threads=1), **options)
    below = Environments(settings, 0, num_threads=1)
    np.testing.assert_array_equal(env.reset(), below.reset())
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.integers(0, below.num_actions, settings.num_envs)
        yield env.step(actions), below.step(actions)


@pytest.mark.parametrize(("life_ends", "steps"), [(True, 220), (False, 80)])
def test_a_lost_life_ends_the_episode_and_not_the_game(life_ends, steps):
    lost = games = 0
    for (stacks, _, dones, infos), below in played(BREAKOUT, steps, life_ends=life_ends):
        np.testing.assert_array_equal(stacks, below.stacks)
        np.testing.assert_array_equal(dones, below.ended | (below.lost_life & life_ends))
        assert [bool(info.get("episode")) for info in infos] == below.ended.tolist()
        assert not any(info.get("TimeLimit.truncated") for info in infos)
        lost, games = lost + below.lost_life.sum(), games + below.ended.sum()
        # the game goes on: the newest frames, no black ones of a new start
        assert stacks[below.lost_life][:, :-1].any(axis=(2, 3)).all()
    assert lost >= 4 * games
    assert games > 0 or (lost > 0 and not life_ends)


def test_rewards_are_clipped_and_returns_are_not():
    # in Space Invaders a hit is worth 5 to 30 points; every game is cut after 100 steps
    settings = AtariSettings("space_invaders", num_envs=2, max_num_frames_per_episode=400)
    total, length, seen, largest = np.zeros(2), np.zeros(2, int), 0, 0.0
    for (_, rewards, _, infos), below in played(settings, 210):
        np.testing.assert_array_equal(rewards, np.sign(below.rewards))
        largest = max(largest, below.rewards.max())
        total += below.rewards
        length += 1
        for env in np.flatnonzero(below.ended):
            assert infos[env]["episode"] == {"r": total[env], "l": length[env]}
            total[env], length[env] = 0.0, 0
            seen += 1
    assert seen >= 4
    assert largest >= 5


def test_a_cut_game_is_told_from_a_lost_one():
    settings = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=40)
    before = None
    for number, ((stacks, _, dones, infos), _) in enumerate(played(settings, 20), start=1):
        assert dones.all() == (number % 10 == 0)
        for env in np.flatnonzero(dones):
            last = infos[env]["terminal_observation"]
            assert infos[env]["TimeLimit.truncated"]
            np.testing.assert_array_equal(last[:-1], before[env, 1:])
            assert (stacks[env, :-1] == 0).all()
        before = stacks


def test_bootstrapping_uses_the_value_of_the_last_stack(small_learner):
    settings = AtariSettings("pong", num_envs=2, max_num_frames_per_episode=20)
    env = AtariVecEnv(Environments(settings, seed=0, num_threads=1))
    learner = type(small_learner())(
        "CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1, gamma=0.5, seed=0, device="cpu"
    )
    learner.train = lambda: None  # so that the values can be asked for once more
    seen = {}

    def note(local, _):
        if local["dones"].any():
            seen[local["n_steps"]] = [info["terminal_observation"] for info in local["infos"]]
        return True

    learner.learn(16, callback=note)
    (step,) = seen
    last = learner.policy.obs_to_tensor(np.stack(seen[step]))[0]
    values = learner.policy.predict_values(last).detach().numpy().ravel()
    np.testing.assert_allclose(learner.rollout_buffer.rewards[step], 0.5 * values, rtol=1e-5)


@pytest.mark.parametrize("name", ["reward_clipping", "episodic_life"])
def test_games_that_do_it_themselves_are_refused(name):
    environments = Environments(AtariSettings("pong", num_envs=1, **{name: True}), seed=0)
    with pytest.raises(ValueError, match=f"{name} of the games must be false"):
        AtariVecEnv(environments)
