"""How well a policy plays, and what its teacher answers in the states that it goes to."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._progress import Advance, progress_bar
from lightning_sobolev.atari.environments import AtariSettings, Environments, check_num_actions
from lightning_sobolev.atari.policy import Behavior, choose, decide, log_probabilities


@dataclass(frozen=True, slots=True)
class EpisodeReturns:
    """Returns of whole episodes: the sums of their rewards."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]  # in steps of the agent
    num_truncated: int  # episodes that were cut at the longest length allowed

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.returns))

    @property
    def standard_error(self) -> float:
        """Standard deviation over the root of their number; NaN for one episode."""
        count = len(self.returns)
        return float(np.std(self.returns, ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def play(
    network: nn.Module,
    settings: AtariSettings,
    *,
    num_episodes: int = 30,
    greedy: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> EpisodeReturns:
    """Play whole episodes with rewards as the game gives them; the network is copied."""
    require(num_episodes >= 1, "num_episodes", "at least 1", num_episodes)
    num_envs = min(num_episodes, settings.num_envs)
    whole = replace(settings, num_envs=num_envs, reward_clipping=False, episodic_life=False)
    environments = Environments(whole, seed)
    player = copy.deepcopy(network).to(device).eval()
    rng = None if greedy else np.random.default_rng(seed)

    def act(stacks: np.ndarray) -> np.ndarray:
        log_probs = log_probabilities(player, stacks, device=device)
        check_num_actions(log_probs.shape[-1], environments, who="network")
        return choose(log_probs, rng)

    with progress_bar(f"playing {settings.game}", num_episodes, enabled=progress) as advance:
        return whole_episodes(environments, act, num_episodes, advance)


def whole_episodes(
    environments: Any, act: Callable[[np.ndarray], np.ndarray], num_episodes: int, advance: Advance
) -> EpisodeReturns:
    """Play in environments with ``act``, from what those see that still have to play to actions."""
    # Each plays a number of episodes fixed beforehand: taking the episodes that end first would
    # favor short ones. Nobody is asked for an environment that has played its share.
    num_envs = environments.settings.num_envs
    left = np.full(num_envs, num_episodes // num_envs)
    left[: num_episodes % num_envs] += 1
    seen = environments.reset()
    actions = np.array(act(seen))
    total, length = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    episodes: list[tuple[np.intp, float, int, bool]] = []
    while True:
        result = environments.step(actions)
        seen, total = result[0], total + result.rewards
        length += 1
        live = np.flatnonzero(left)
        for env in live[result.ended[live]]:
            is_cut = bool(result.truncated[env])
            episodes.append((env, float(total[env]), int(length[env]), is_cut))
            left[env] -= 1
            advance(1)
        if not left.any():
            break
        total[result.ended], length[result.ended] = 0.0, 0
        live = np.flatnonzero(left)
        actions[live] = act(seen[live])
    episodes.sort(key=lambda episode: episode[0])
    _, returns, lengths, truncated = zip(*episodes, strict=True)
    return EpisodeReturns(returns, lengths, sum(truncated))


class OnPolicyAnswers(NamedTuple):
    """Log-probabilities in the states that a player went to."""

    player: Float[np.ndarray, "step env actions"]
    teacher: Float[np.ndarray, "step env actions"]


def on_policy_answers(
    player: nn.Module,
    teacher: nn.Module,
    settings: AtariSettings,
    *,
    num_states: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> OnPolicyAnswers:
    """Let one policy play the beginnings of games, by sampled actions, and ask another one too."""
    require(num_states >= 1, "num_states", "at least 1", num_states)
    environments = Environments(settings, seed)
    networks = [copy.deepcopy(one).to(device).eval() for one in (player, teacher)]
    answers, stacks = [], environments.reset()
    with progress_bar(f"comparing in {settings.game}", num_states, enabled=progress) as advance:
        for step in range(-(-num_states // settings.num_envs)):
            own, asked = (log_probabilities(one, stacks, device=device) for one in networks)
            for who, answer in (("player", own), ("teacher", asked)):
                check_num_actions(answer.shape[-1], environments, who=who)
            answers.append((own, asked))
            actions = decide(Behavior(beta=0.0), asked, own, np.random.default_rng((seed, step)))
            stacks = environments.step(actions).stacks
            advance(settings.num_envs)
    return OnPolicyAnswers(*(np.stack(both) for both in zip(*answers, strict=True)))
