"""How well a policy plays, and what its teacher answers in the states that it goes to."""

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lightning_sobolev._checks import require
from lightning_sobolev._progress import progress_bar
from lightning_sobolev.atari.evaluate import EpisodeReturns, OnPolicyAnswers, whole_episodes
from lightning_sobolev.atari.policy import Behavior
from lightning_sobolev.policies.environments import EnvSettings, VectorEnvironments
from lightning_sobolev.policies.heads import Head
from lightning_sobolev.policies.recording import answers_of


def play_policy(
    network: nn.Module,
    settings: EnvSettings,
    *,
    num_episodes: int = 30,
    greedy: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> EpisodeReturns:
    """Play whole episodes; the network is copied.

    Args:
        network: Maps observations to outputs.
        settings: What is played.
        num_episodes: How many.
        greedy: Whether the greedy action is taken instead of a sampled one.
        seed: Seed of the episodes and of the sampled actions.
        device: Where the network works.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        Their returns.

    Raises:
        ValueError: If the number is below 1, or the network does not fit the environment.
    """
    require(num_episodes >= 1, "num_episodes", "at least 1", num_episodes)
    whole = replace(settings, num_envs=min(num_episodes, settings.num_envs))
    head, player = Head.for_env(settings), copy.deepcopy(network).to(device).eval()
    rng = None if greedy else np.random.default_rng(seed)

    def act(observations: np.ndarray) -> np.ndarray:
        return head.actions(head.choose(answers_of(player, head, observations, device=device), rng))

    environments = VectorEnvironments(whole, seed)
    with progress_bar(f"playing {settings.id}", num_episodes, enabled=progress) as advance:
        return whole_episodes(environments, act, num_episodes, advance)


def visited_answers(
    player: nn.Module,
    teacher: nn.Module,
    settings: EnvSettings,
    *,
    num_states: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> OnPolicyAnswers:
    """Let one policy play, by sampled actions, and ask another one in every state, too.

    Args:
        player: Who acts.
        teacher: Who is asked.
        settings: What is played.
        num_states: States to compare in, spread over ``settings.num_envs`` environments.
        seed: Seed of the episodes and of the sampled actions.
        device: Where the networks work.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        Both answers in every state.

    Raises:
        ValueError: If the number is below 1, or a network does not fit the environment.
    """
    require(num_states >= 1, "num_states", "at least 1", num_states)
    environments, head = VectorEnvironments(settings, seed), Head.for_env(settings)
    networks = {"player": player, "teacher": teacher}
    copies = {who: copy.deepcopy(one).to(device).eval() for who, one in networks.items()}
    found, observations = [], environments.reset()
    with progress_bar(f"comparing in {settings.id}", num_states, enabled=progress) as advance:
        for step in range(-(-num_states // settings.num_envs)):
            own, asked = (
                answers_of(one, head, observations, device=device, who=who)
                for who, one in copies.items()
            )
            found.append((own, asked))
            rng = np.random.default_rng((seed, step))
            decided = head.decide(Behavior(beta=0.0), asked, own, rng)
            observations = environments.step(head.actions(decided)).observations
            advance(settings.num_envs)
    return OnPolicyAnswers(*(np.stack(both) for both in zip(*found, strict=True)))
