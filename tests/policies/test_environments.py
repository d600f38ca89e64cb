import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import register

from lightning_sobolev.policies import EnvSettings, VectorEnvironments, spaces_of
from lightning_sobolev.policies import environments as module


class Seeing(gymnasium.Env):
    """An environment that shows the same in every step, and never ends."""

    def __init__(self, shape=(2,), dtype="float32", actions="choice", shown=None, reward=0.0):
        if dtype == "unheard of":
            raise AssertionError("dtype is unheard of")
        self.observation_space = gymnasium.spaces.Box(0, 1, tuple(shape), np.dtype(dtype))
        known = {
            "choice": gymnasium.spaces.Discrete(3, start=1),
            "several": gymnasium.spaces.MultiDiscrete([2, 2]),
            "unbounded": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
        }
        self.action_space = known[actions]
        self.shown = np.zeros(shape, self.observation_space.dtype) if shown is None else shown
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        return np.asarray(self.shown, self.observation_space.dtype), {}

    def step(self, _):
        return self.reset()[0], float(self.reward), False, False, {}


register("Seeing-v0", entry_point=Seeing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": [2, 2]}, r"observations of Seeing-v0 must be a vector .*Box"),
        ({"dtype": "uint8"}, r"observations of Seeing-v0 must be a vector of real numbers"),
        ({"actions": "several"}, r"actions of Seeing-v0 must be a choice .*MultiDiscrete"),
        ({"shown": [0, 0, 0]}, r"observations of Seeing-v0 must be vectors of Box.*, got \[3\]"),
        ({"colour": "red"}, r"options must be those of Seeing-v0, got .*red.*colour"),
        ({"dtype": "unheard of"}, r"options must be those of Seeing-v0, got .*: dtype is unheard"),
    ],
)
def test_environments_that_are_no_vectors_are_refused(options, message):
    settings = EnvSettings("Seeing-v0", options=options)
    with pytest.raises(ValueError, match=message):
        spaces_of(settings)


def test_squashing_needs_bounds():
    for options in ({}, {"actions": "unbounded"}):
        settings = EnvSettings("Seeing-v0", options=options, squash=True)
        with pytest.raises(ValueError, match="squash must be false where actions are not"):
            spaces_of(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"id": "CartPole-v2"},
            r"id must name a registered environment \(CartPole-v1, .*'CartPole-v2'",
        ),
        ({"id": "nowhere:Thing-v0"}, r"id must name a registered environment .*nowhere"),
        ({"id": 3}, "id must be a name that gymnasium knows, got 3"),
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"max_episode_steps": 2.5}, "max_episode_steps must be a whole number >= 1, got 2.5"),
        ({"options": {"x": object()}}, "options must be keyword arguments as JSON says them"),
        ({"options": {"max_episode_steps": 3}}, "options must be without max_episode_steps, a se"),
        ({"squash": "no"}, "squash must be true or false, got 'no'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        EnvSettings(**{"id": "CartPole-v1", **changes})


def test_the_same_seed_and_actions_give_the_same_bits():
    settings = EnvSettings("Pendulum-v1", num_envs=3, max_episode_steps=4)
    runs = []
    for seed in (5, 5, 6):
        environments = VectorEnvironments(settings, seed)
        seen = [environments.reset()]
        results = [environments.step(np.full((3, 1), 0.5, np.float32)) for _ in range(6)]
        runs.append(np.stack([*seen, *(one.observations for one in results)]))
        # an episode is cut after four steps, and the next begins in the same step
        assert [bool(one.truncated.all()) for one in results] == [False] * 3 + [True, False, False]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert runs[0].dtype == np.float32
    assert not np.isin(runs[2][0, :, 0], runs[0][0, :, 0]).any()


def test_options_reach_the_environment():
    falls = []
    for gravity in (10.0, 0.0):
        settings = EnvSettings("Pendulum-v1", num_envs=1, options={"g": gravity})
        environments = VectorEnvironments(settings, 0)
        before = environments.reset()[0]
        after = environments.step(np.zeros((1, 1), np.float32)).observations[0]
        falls.append(abs(after[2] - before[2]))
    assert falls[1] == 0 < falls[0]


def test_the_sizes_are_those_of_the_environment():
    spaces = spaces_of(EnvSettings("Acrobot-v1"))
    assert (spaces.num_observations, int(spaces.actions.n)) == (6, 3)


def test_a_package_before_the_colon_is_imported(tmp_path, monkeypatch):
    (tmp_path / "own_environments.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert spaces_of(EnvSettings("own_environments:Mine-v0")).num_observations == 4
    finally:
        gymnasium.registry.pop("Mine-v0", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shown": [0.0, "nan"]}, r"observations of Seeing-v0 must be finite .*, got \[0.0, nan\]"),
        ({"shown": [1e300, 0.0], "dtype": "float64"}, r"observations .* float32, got \[1e\+300, 0"),
        ({"reward": "nan"}, r"rewards of Seeing-v0 must be finite in float32, got nan"),
    ],
)
def test_what_is_not_finite_is_the_environments(options, message):
    environments = VectorEnvironments(EnvSettings("Seeing-v0", options=options, num_envs=2), 0)

    def play():
        environments.reset()
        environments.step(np.array([1, 1]))

    with pytest.raises(ValueError, match=message):
        play()


def test_an_episode_that_does_not_end_is_named_where_nothing_cuts_it(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_EPISODE", 5)

    def play(**settings):
        environments = VectorEnvironments(EnvSettings(num_envs=2, **settings), 0)
        environments.reset()
        for _ in range(6):
            environments.step(np.array([1, 1]))

    with pytest.raises(ValueError, match="max_episode_steps must be a number for Seeing-v0, got N"):
        play(id="Seeing-v0")
    play(id="Seeing-v0", max_episode_steps=50)
    play(id="CartPole-v1")  # is cut as it is registered
