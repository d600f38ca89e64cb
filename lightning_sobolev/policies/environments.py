"""Environments of gymnasium with vector observations: the same for recording and evaluating.

Note [reset at once]: the environments restart an ended episode in the same step, as those of
:mod:`lightning_sobolev.atari` do. So every step is a transition and no action is ever ignored.
"""

import difflib
import importlib
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AutoresetMode
from jaxtyping import Bool, Float

from lightning_sobolev._checks import require

LONGEST_EPISODE = 100_000
"""Steps after which an episode counts as endless where neither settings nor registry cut it."""


@dataclass(frozen=True, slots=True)
class EnvSettings:
    """Everything that decides what an agent sees and what its actions do.

    Args:
        id: Name under which gymnasium knows the environment, e.g. ``"LunarLander-v3"``.
        num_envs: Copies that are stepped together.
        max_episode_steps: Steps after which an episode is cut; None takes what is registered.
        options: Keyword arguments of the environment as JSON says them: ``{"gravity": -8.0}``.
        squash: Whether a continuous action is the hyperbolic tangent of what is drawn, scaled to
            the bounds (SAC), instead of what is drawn, clipped to them (PPO, A2C).

    Raises:
        ValueError: If there is no such environment, or a value is of another kind. That its
            observations are no vector is said by :func:`spaces_of`.
    """

    id: str
    _: KW_ONLY
    num_envs: int = 8
    max_episode_steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    squash: bool = False

    def __post_init__(self) -> None:
        for name in ("num_envs", "max_episode_steps"):
            value = getattr(self, name)
            is_whole = type(value) is int and value >= 1
            is_open = value is None and name == "max_episode_steps"
            require(is_whole or is_open, name, "a whole number >= 1", value)
        require(isinstance(self.squash, bool), "squash", "true or false", self.squash)
        try:
            plain = json.loads(json.dumps(dict(self.options)))
        except (TypeError, ValueError) as error:
            got = f"got {self.options!r} ({error})"
            raise ValueError(
                f"options must be keyword arguments as JSON says them, {got}"
            ) from error
        is_own = "max_episode_steps" not in plain
        require(is_own, "options", "without max_episode_steps, a setting of its own", plain)
        object.__setattr__(self, "options", plain)
        _check_id(self.id)


def _check_id(name: object) -> None:
    require(isinstance(name, str) and bool(name), "id", "a name that gymnasium knows", name)
    package, _, registered = str(name).rpartition(":")
    try:
        if package:  # gymnasium.spec() does not import it, as gymnasium.make() does
            importlib.import_module(package)
        gymnasium.spec(registered)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        close = difflib.get_close_matches(registered, list(gymnasium.registry), n=3, cutoff=0.6)
        hint = f"{', '.join(close)}?" if close else "package:Name-v0 imports a package first"
        text = f"id must name a registered environment ({hint}), got {name!r}"
        raise ValueError(f"{text}: {error}") from error


class Spaces(NamedTuple):
    """What an agent sees and what it may do."""

    num_observations: int
    actions: Discrete | Box


def spaces_of(settings: EnvSettings) -> Spaces:
    """Return the sizes of an environment; one is made for it, once.

    Raises:
        ValueError: If observations are no vector of real numbers, or actions neither a choice nor
            such a vector.
    """
    options = json.dumps(settings.options, sort_keys=True)
    return _spaces(settings.id, options, settings.squash)


@lru_cache(maxsize=64)
def _spaces(name: str, options: str, squash: bool) -> Spaces:
    env = _made(gymnasium.make, name, json.loads(options))
    seen, actions = env.observation_space, env.action_space
    shape = list(np.shape(env.reset(seed=0)[0])) if _is_vector(seen) else None
    env.close()
    if not _is_vector(seen):
        text = f"observations of {name} must be a vector of real numbers, a Box of one axis"
        raise ValueError(f"{text}, got {seen}; options or a wrapper of your own may flatten it")
    if not isinstance(actions, Discrete) and not _is_vector(actions):
        text = f"actions of {name} must be a choice (Discrete) or a vector of real numbers (Box)"
        raise ValueError(f"{text}, got {actions}")
    is_bounded = isinstance(actions, Box) and actions.is_bounded("both")
    if squash and not is_bounded:
        text = "squash must be false where actions are not a vector within bounds"
        raise ValueError(f"{text}, got true for {actions} of {name}")
    require(shape == list(seen.shape), f"observations of {name}", f"vectors of {seen}", shape)
    return Spaces(seen.shape[0], actions)


def _is_vector(space: Space) -> bool:
    is_box = isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0
    return is_box and np.issubdtype(space.dtype, np.floating)


def _made(make: Any, name: str, options: Mapping[str, Any], **ours: Any) -> Any:
    try:
        return make(name, disable_env_checker=True, **ours, **options)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        text = "it needs another package: the extra 'box2d' or 'mujoco', or one of its own"
        raise ModuleNotFoundError(f"{name} cannot be made, {text} ({error})") from error
    except (TypeError, ValueError, AssertionError, gymnasium.error.Error) as error:
        raise ValueError(f"options must be those of {name}, got {options}: {error}") from error


class Transition(NamedTuple):
    """What one step of all environments brought; see Note [reset at once]."""

    observations: Float[np.ndarray, "env obs"]
    rewards: Float[np.ndarray, " env"]
    terminated: Bool[np.ndarray, " env"]
    truncated: Bool[np.ndarray, " env"]

    @property
    def ended(self) -> Bool[np.ndarray, " env"]:
        """Whether an episode ended, in either way."""
        return np.asarray(self.terminated | self.truncated)


class VectorEnvironments:
    """Several copies of one environment, seeded, stepped one after the other in this process.

    The same settings, seed and actions give the same observations bit for bit where the environment
    itself does. Observations are rounded to float32, which is what a network is shown.
    """

    def __init__(self, settings: EnvSettings, seed: int) -> None:
        require(seed >= 0, "seed", "at least 0", seed)
        spaces_of(settings)
        cut = settings.max_episode_steps
        self.settings, self._seed = settings, seed
        self._env = _made(
            gymnasium.make_vec,
            settings.id,
            settings.options,
            num_envs=settings.num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
            **({} if cut is None else {"max_episode_steps": cut}),
        )
        self._has_limit = (cut or self._env.spec.max_episode_steps) is not None
        self._ages = np.zeros(settings.num_envs, np.int64)

    def reset(self, seed: int | None = None) -> Float[np.ndarray, "env obs"]:
        """Start every episode from a seed, by default that of all; return what is seen."""
        # consecutive seeds would give runs with seeds 0 and 1 nearly all episodes in common
        spread = np.random.SeedSequence(self._seed if seed is None else seed)
        seeds = spread.generate_state(self.settings.num_envs) >> 1
        observations, _ = self._env.reset(seed=[int(one) for one in seeds])
        self._ages[:] = 0
        return self._finite("observations", observations, np.float32)

    def step(self, actions: np.ndarray) -> Transition:
        """Return what one action in every environment brought.

        Raises:
            ValueError: If an observation or a reward is not finite in float32, or an episode that
                nothing cuts does not end.
        """
        observations, rewards, *ends, _ = self._env.step(actions)
        terminated, truncated = (np.asarray(end, dtype=bool) for end in ends)
        result = Transition(
            self._finite("observations", observations, np.float32),
            self._finite("rewards", rewards, np.float64),
            terminated,
            truncated,
        )
        self._ages = np.where(result.ended, 0, self._ages + 1)
        if not self._has_limit and self._ages.max() >= LONGEST_EPISODE:
            text = f"max_episode_steps must be a number for {self.settings.id}, got None"
            raise ValueError(f"{text}: an episode has not ended after {LONGEST_EPISODE} steps")
        return result

    def _finite(self, name: str, found: np.ndarray, dtype: Any) -> np.ndarray:
        # what float32 cannot hold becomes infinite, which is said below
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(np.asarray(found, np.float32))
            numbers = np.asarray(found, dtype)
        if not is_finite.all():
            row = np.asarray(found)[~is_finite.reshape(len(found), -1).all(1)][0].tolist()
            text = f"{name} of {self.settings.id} must be finite in float32, got {row}"
            raise ValueError(text)
        return numbers
