"""Atari games as stable-baselines3 takes them, with ends and rewards as training wants them.

Note [life ends]: a lost life ends the episode for the advantage and for nothing else: the game goes
on where it is. The native ``episodic_life`` starts the game anew instead, so that nothing beyond a
first life is ever learned, and its ``life_loss_info`` hides which ends are those of games.
"""

from typing import Any, NoReturn

import numpy as np
from gymnasium import spaces
from jaxtyping import Int, UInt8
from stable_baselines3.common.vec_env import VecEnv

from lightning_sobolev.atari.environments import Environments, Transition

Stacks = UInt8[np.ndarray, "env stack height width"]


class AtariVecEnv(VecEnv):
    """Games for an on-policy learner: rewards by their sign, ends at lost lives.

    When a game ends, ``info["episode"]`` holds its whole return ``r``, not clipped, and its length
    ``l`` (``VecMonitor`` would count at every lost life, and clipped rewards). ``life_ends`` says
    whether a lost life ends an episode; see Note [life ends].
    """

    def __init__(self, environments: Environments, *, life_ends: bool = True) -> None:
        settings = environments.settings
        for name in ("reward_clipping", "episodic_life"):
            if getattr(settings, name):
                raise ValueError(f"{name} of the games must be false: it is done here; got true")
        self._environments, self._life_ends = environments, life_ends
        self._returns = np.zeros(settings.num_envs)
        self._lengths = np.zeros(settings.num_envs, np.int64)
        shape = (settings.stack_num, settings.img_height, settings.img_width)
        actions = spaces.Discrete(environments.num_actions)
        super().__init__(settings.num_envs, spaces.Box(0, 255, shape, np.uint8), actions)

    def reset(self) -> Stacks:
        """Start every game; returns the first stacks."""
        self._returns[:], self._lengths[:] = 0.0, 0
        return self._environments.reset()

    def step_async(self, actions: Int[np.ndarray, " env"]) -> None:
        """Note what to do."""
        self._actions = actions

    def step_wait(self) -> tuple[Stacks, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Do it; returns stacks, signs of the rewards, ends, and what else is known."""
        result = self._environments.step(self._actions)
        self._returns += result.rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env in np.flatnonzero(result.ended):
            infos[env] = self._end_of_game(result, int(env))
        dones = result.ended
        if self._life_ends:
            dones |= result.lost_life
            for env in np.flatnonzero(result.lost_life):
                infos[env] = {"terminal_observation": result.stacks[env]}
        return result.stacks, np.sign(result.rewards), dones, infos

    def _end_of_game(self, result: Transition, env: int) -> dict[str, Any]:
        assert result.last is not None
        episode = {"r": float(self._returns[env]), "l": int(self._lengths[env])}
        self._returns[env], self._lengths[env] = 0.0, 0
        return {
            "episode": episode,
            "terminal_observation": result.last[env],
            "TimeLimit.truncated": bool(result.truncated[env] and not result.terminated[env]),
        }

    def close(self) -> None:
        """Nothing is held that the garbage collector does not free."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return what the games have in common, once a game; nothing is rendered."""
        value = None if attr_name == "render_mode" else getattr(self._environments, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the games share their settings, and there is no object for one game."""
        raise AttributeError(f"{attr_name} is not of one game: it cannot be set or called")

    def env_method(self, method_name: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse likewise."""
        self.set_attr(method_name)

    def env_is_wrapped(self, _: type, indices: Any = None) -> list[bool]:
        """Say that no game is wrapped."""
        return [False for _ in self._get_indices(indices)]
