"""Games are played; every decision is noted with the newest picture and the teacher's answer."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import nn

from lightning_sobolev._progress import Advance
from lightning_sobolev.atari.environments import Environments, check_num_actions
from lightning_sobolev.atari.policy import Behavior, decide, log_probabilities
from lightning_sobolev.atari.storage import CONTINUES, STATE, TERMINATED, TRUNCATED, Chunk


class _Moment(NamedTuple):
    stacks: UInt8[np.ndarray, "env stack height width"]
    age: Int[np.ndarray, " env"]
    episode: Int[np.ndarray, " env"]


class Rollout:
    """One run of several games, a pure function of settings, policies, behavior and seed.

    The draws at step t come from (seed, t) alone, so a run that is replayed up to any step goes on
    exactly as if it had never stopped.

    Args:
        environments: The games; they are started here.
        seed: Seed of all draws.
        behavior: Who acts, and how.
    """

    def __init__(self, environments: Environments, *, seed: int, behavior: Behavior) -> None:
        self._environments = environments
        self._seed = seed
        self._behavior = behavior
        num_envs = environments.num_envs
        self._now = _Moment(
            environments.reset(), np.zeros(num_envs, np.int64), np.arange(num_envs, dtype=np.int64)
        )
        self._num_episodes = num_envs
        self.step = 0

    def replay(self, chunk: Chunk, advance: Advance) -> bool:
        """Take recorded actions again, without asking the policy.

        Args:
            chunk: The steps that follow the present one.
            advance: Told how many states are done.

        Returns:
            Whether every picture came out as it was recorded.
        """
        for t in range(len(chunk)):
            row = chunk.states[t]
            same_frames = np.array_equal(chunk.frames[t], self._now.stacks[:, -1])
            if not same_frames or not np.array_equal(row["episode"], self._now.episode):
                return False
            self._act(row["action"])
            advance(len(row))
        return True

    def record(
        self,
        teacher: nn.Module,
        num_steps: int,
        advance: Advance,
        *,
        player: nn.Module | None = None,
        device: torch.device | str = "cpu",
    ) -> Chunk:
        """Play on and note every state with the teacher's answer.

        Args:
            teacher: Maps scaled stacks to logits; in eval mode.
            num_steps: How many steps of each game.
            advance: Told how many states are done.
            player: Who takes the decisions that the behavior does not leave to the teacher.
            device: Where the networks are.

        Returns:
            What was recorded.

        Raises:
            ValueError: If the outputs of a network are not the game's actions.
        """
        frames, log_probs, states = [], [], []
        for _ in range(num_steps):
            answer = self._answer(teacher, "teacher", device)
            other = None if player is None else self._answer(player, "player", device)
            rng = np.random.default_rng((self._seed, self.step))
            frames.append(self._now.stacks[:, -1].copy())
            log_probs.append(answer)
            states.append(self._act(decide(self._behavior, answer, other, rng)))
            advance(self._environments.num_envs)
        return Chunk(np.stack(frames), np.stack(log_probs), np.stack(states))

    def _answer(
        self, network: nn.Module, who: str, device: torch.device | str
    ) -> Float[np.ndarray, "env actions"]:
        answer = log_probabilities(network, self._now.stacks, device=device)
        check_num_actions(answer.shape[-1], self._environments, who=who)
        return answer

    def _act(self, actions: Int[np.ndarray, " env"]) -> np.ndarray:
        before = self._now
        result = self._environments.step(actions)
        rows = np.empty(len(actions), STATE)
        rows["episode"], rows["age"], rows["action"] = before.episode, before.age, actions
        rows["reward"] = result.rewards
        rows["end"] = np.where(
            result.terminated, TERMINATED, np.where(result.truncated, TRUNCATED, CONTINUES)
        )
        age = np.where(result.ended, 0, before.age + 1)
        episode = before.episode.copy()
        episode[result.ended] = self._num_episodes + np.arange(result.ended.sum())
        self._num_episodes += int(result.ended.sum())
        self._check_stacks(before.stacks, result.stacks, age)
        self._now = _Moment(result.stacks, age, episode)
        self.step += 1
        return rows

    @staticmethod
    def _check_stacks(
        before: UInt8[np.ndarray, "env stack height width"],
        after: UInt8[np.ndarray, "env stack height width"],
        age: Int[np.ndarray, " env"],
    ) -> None:
        # single pictures can stand for stacks only if a stack is the last one moved on by a
        # picture, or zeros and one picture at the start of an episode
        expected = np.where(age[:, None, None, None] == 0, 0, before[:, 1:])
        if not np.array_equal(expected, after[:, :-1]):
            raise RuntimeError(
                "the environment's stacks are not its last pictures: this version of ale_py cannot "
                "be recorded"
            )
