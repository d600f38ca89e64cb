"""Some states of a game and those that follow: from a recording, or played at once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor, from_numpy, nn

from lightning_sobolev._checks import require
from lightning_sobolev.atari.agents.cards import Card, load_agent
from lightning_sobolev.atari.agents.formats import ForeignAgent
from lightning_sobolev.atari.environments import AtariSettings, Environments, check_num_actions
from lightning_sobolev.atari.networks import scale_pixels
from lightning_sobolev.atari.policy import choose, log_probabilities
from lightning_sobolev.atari.recordings.format import CONTINUES, Recording

_SPAN = 1600
"""Steps of the agent over which states are spread: those of the start alone mislead (Breakout)."""

Stacks = UInt8[np.ndarray, "states stack height width"]


class AgentStates(NamedTuple):
    """A policy, states of its game and the states that followed, pixels in 0..1."""

    network: nn.Module
    x: Tensor
    next_x: Tensor


def agent_states(
    game: str, agent: str | None, recording: str | Path | None, count: int, seed: int = 0
) -> AgentStates:
    """Return an agent with states that it meets, none of them the last of its episode.

    Args:
        game: Name of the game in snake case.
        agent: Whatever :func:`~lightning_sobolev.atari.load_agent` takes; None for the one that
            comes with the package.
        recording: Folder of a recording, whose states are drawn at random; None plays some
            games with sampled actions, 1,600 steps of the agent each; nothing is written.
        count: Number of states.
        seed: Of the games and all draws.

    Returns:
        The network and ``count`` states.

    Raises:
        ValueError: If the agent or the recording is of another game, the agent cannot be loaded,
            the recording is damaged or too short, or ``count`` is below 1.
        FileNotFoundError: If there is no recording.
    """
    require(count >= 1, "states", "at least 1", count)
    network, settings = _loaded(game, agent)
    if recording is None:
        found = _played(network, settings, count, seed)
    else:
        found = _recorded(Recording(recording), game, count, seed)
    return AgentStates(network, *(scale_pixels(from_numpy(stacks)) for stacks in found))


def _loaded(game: str, agent: str | None) -> tuple[nn.Module, AtariSettings]:
    settings = AtariSettings(game)
    card: Card
    if agent is None or Path(agent).with_suffix(".json").exists():
        network, card = load_agent(game if agent is None else agent)
    else:
        network, card = load_agent(ForeignAgent(agent, settings))
    if "environment" in card:
        settings = AtariSettings(**card["environment"])
    require(settings.game == game, "game", f"that of the agent, {settings.game}", game)
    return network, settings


def _recorded(recording: Recording, game: str, count: int, seed: int) -> tuple[Stacks, Stacks]:
    found = recording.settings.game
    require(found == game, "recording", f"one of {game}", found)
    goes_on = np.flatnonzero(recording.states["end"] == CONTINUES)
    text = f"at most {len(goes_on)}, what the recording has"
    require(count <= len(goes_on), "states", text, count)
    rows = np.sort(np.random.default_rng(seed).permutation(goes_on)[:count])
    return recording.stacks(rows), recording.stacks(rows + 1)


def _played(
    network: nn.Module, settings: AtariSettings, count: int, seed: int
) -> tuple[Stacks, Stacks]:
    environments, rng = Environments(settings, seed), np.random.default_rng(seed)
    stacks, step = environments.reset(), 0
    apart = max(1, _SPAN * settings.num_envs // count)
    found: list[tuple[Stacks, Stacks]] = []
    while sum(len(before) for before, _ in found) < count:
        log_probs = log_probabilities(network, stacks)
        check_num_actions(log_probs.shape[-1], environments, who="agent")
        result = environments.step(choose(log_probs, rng))
        step += 1
        if step % apart == 0:
            found.append((stacks[~result.ended], result.stacks[~result.ended]))
        stacks = result.stacks.copy()  # the emulator may write the next ones there
    before, after = (np.concatenate(each)[:count] for each in zip(*found, strict=True))
    return before, after
