"""How well a policy plays: returns of whole episodes, unclipped."""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from lightning_sobolev._progress import progress_bar
from lightning_sobolev.atari.environments import (
    AtariSettings,
    check_num_actions,
    make_environments,
)
from lightning_sobolev.atari.policy import choose, log_probabilities


@dataclass(frozen=True, slots=True)
class EpisodeReturns:
    """Returns of whole episodes.

    Args:
        mean: Their mean.
        standard_error: Standard deviation over the root of their number; NaN for one episode.
        returns: Sum of the rewards of every episode.
        lengths: Steps of the agent in every episode.
        num_truncated: Episodes that were cut at the longest length allowed.
    """

    mean: float
    standard_error: float
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    num_truncated: int


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
    """Play whole episodes with rewards as the game gives them.

    Every game plays a number of episodes fixed beforehand: taking the episodes that end first would
    favor short ones. The network is not asked for a game that has played its share.

    Args:
        network: Maps scaled stacks to logits; it is copied.
        settings: What is played; clipped rewards and ends at lost lives are ignored.
        num_episodes: Episodes to play.
        greedy: Whether the likeliest action is taken instead of a drawn one.
        seed: Seed of the games and of the drawn actions.
        device: Where the network works.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The returns, in the order of the games.

    Raises:
        ValueError: If there is nothing to play or the outputs are not the game's actions.
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")
    num_envs = min(num_episodes, settings.num_envs)
    whole = replace(settings, num_envs=num_envs, reward_clipping=False, episodic_life=False)
    environments = make_environments(whole, seed)
    player = copy.deepcopy(network).to(device).eval()
    left = np.full(num_envs, num_episodes // num_envs)
    left[: num_episodes % num_envs] += 1
    rng = None if greedy else np.random.default_rng(seed)
    stacks, actions = environments.reset(), np.zeros(num_envs, np.int64)
    total, length = np.zeros(num_envs), np.zeros(num_envs, np.int64)
    episodes: list[tuple[int, float, int, bool]] = []
    with progress_bar(f"playing {settings.game}", num_episodes, enabled=progress) as advance:
        while left.any():
            live = np.flatnonzero(left)
            log_probs = log_probabilities(player, stacks[live], device=device)
            check_num_actions(log_probs.shape[-1], environments, who="network")
            actions[live] = choose(log_probs, rng)
            result = environments.step(actions)
            stacks, total = result.stacks, total + result.rewards
            length += 1
            for env in live[result.ended[live]]:
                episodes.append((env, total[env], length[env], result.truncated[env]))
                left[env] -= 1
                advance(1)
            total[result.ended], length[result.ended] = 0.0, 0
    return _summary(sorted(episodes, key=lambda episode: episode[0]))


def _summary(episodes: list[tuple[int, float, int, bool]]) -> EpisodeReturns:
    returns = np.array([episode[1] for episode in episodes])
    error = returns.std(ddof=1) / math.sqrt(len(returns)) if len(returns) > 1 else math.nan
    return EpisodeReturns(
        mean=float(returns.mean()),
        standard_error=float(error),
        returns=tuple(returns.tolist()),
        lengths=tuple(int(episode[2]) for episode in episodes),
        num_truncated=sum(bool(episode[3]) for episode in episodes),
    )
