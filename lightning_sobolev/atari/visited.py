"""What a policy and its teacher answer where the policy goes."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from lightning_sobolev._progress import progress_bar
from lightning_sobolev.atari.behavior import Behavior, decide
from lightning_sobolev.atari.environments import (
    AtariSettings,
    check_num_actions,
    make_environments,
)
from lightning_sobolev.atari.policy import log_probabilities


class VisitedAnswers(NamedTuple):
    """Log-probabilities in the states that were visited."""

    player: Float[np.ndarray, "step env actions"]
    teacher: Float[np.ndarray, "step env actions"]


def visit(
    player: nn.Module,
    teacher: nn.Module,
    settings: AtariSettings,
    *,
    num_states: int,
    behavior: Behavior | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> VisitedAnswers:
    """Let a policy play the beginnings of games and ask the teacher at every state.

    Nothing is stored; :func:`~lightning_sobolev.atari.record` with a player keeps the pictures.

    Args:
        player: Maps scaled stacks to logits; it is copied.
        teacher: The same, asked but not followed.
        settings: What is played.
        num_states: How many states at least; whole steps of all games are played.
        behavior: How actions are chosen; None draws them from the player's own probabilities.
        seed: Seed of the games and of all draws.
        device: Where the networks work.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        Both answers to every state.

    Raises:
        ValueError: If there is nothing to play or outputs are not the game's actions.
    """
    if num_states < 1:
        raise ValueError(f"num_states must be at least 1, got {num_states}")
    behavior = behavior or Behavior(teacher_share=0.0)
    behavior.check_player(player)
    environments = make_environments(settings, seed)
    networks = [copy.deepcopy(one).to(device).eval() for one in (player, teacher)]
    answers, stacks = [], environments.reset()
    with progress_bar(f"visiting {settings.game}", num_states, enabled=progress) as advance:
        for step in range(-(-num_states // settings.num_envs)):
            own, asked = (log_probabilities(one, stacks, device=device) for one in networks)
            for who, answer in (("player", own), ("teacher", asked)):
                check_num_actions(answer.shape[-1], environments, who=who)
            answers.append((own, asked))
            actions = decide(behavior, asked, own, np.random.default_rng((seed, step)))
            stacks = environments.step(actions).stacks
            advance(settings.num_envs)
    return VisitedAnswers(*(np.stack(both) for both in zip(*answers, strict=True)))
