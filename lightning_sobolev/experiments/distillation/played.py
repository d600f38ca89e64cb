"""What can be played: a game, or an environment with vector observations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_sobolev.atari import AtariSettings, load_agent, on_policy_answers, play
from lightning_sobolev.atari.evaluate import EpisodeReturns, OnPolicyAnswers
from lightning_sobolev.policies import (
    DiscreteHead,
    EnvSettings,
    Head,
    load_policy,
    play_policy,
    visited_answers,
)

Settings = AtariSettings | EnvSettings


@dataclass(frozen=True)
class Played:
    """How something is played.

    Args:
        name: What it is called.
        head: What a network's outputs mean in it.
        play: Plays whole episodes with a network.
        compare: Asks a player and its teacher in the states that the player goes to.
        load: Returns the network and the card of what a configuration names as teacher.
        causes: What an able teacher that plays badly may have been trained with.
    """

    name: str
    head: Head
    play: Callable[..., EpisodeReturns]
    compare: Callable[..., OnPolicyAnswers]
    load: Callable[[Any], tuple[nn.Module, dict[str, Any]]]
    causes: str


def played(settings: Settings) -> Played:
    """Return how these settings are played."""
    if isinstance(settings, AtariSettings):
        causes = (
            "other frames or actions than env.settings describes (frameskip, maxpool, sticky, "
            "full_action_space)"
        )
        return Played(settings.game, DiscreteHead(), play, on_policy_answers, load_agent, causes)
    if not isinstance(settings, EnvSettings):
        got = type(settings).__name__
        raise ValueError(f"settings must be AtariSettings or EnvSettings, got {got}")
    return Played(
        settings.id,
        Head.for_env(settings),
        play_policy,
        visited_answers,
        lambda policy: load_policy(policy, settings),
        "another environment than env.settings describes (options, max_episode_steps, squash), or "
        "on normalized observations (teacher.agent.observation_mean)",
    )
