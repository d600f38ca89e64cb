"""A trained policy as a stored agent: judged as it is stored, described, ready to teach."""

import math
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sobolev.atari.agents.cards import Card, load_agent, save_agent
from lightning_sobolev.atari.environments import AtariSettings, Environments
from lightning_sobolev.atari.evaluate import EpisodeReturns, play
from lightning_sobolev.atari.networks import NatureCNN

_LIBRARIES = ("stable-baselines3", "torch", "ale-py", "gymnasium", "numpy")


def export_agent(
    path: Path,
    network: NatureCNN,
    settings: AtariSettings,
    about: dict[str, Any],
    *,
    num_episodes: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Card:
    """Store an agent with a card that says what it is and how well it plays.

    Weights are stored in half precision but for the first layer, and it is the stored agent that
    plays.

    Args:
        path: A ``.safetensors`` file; the card goes beside it.
        network: Maps scaled stacks to logits.
        settings: The games it plays.
        about: What else the card shall say.
        num_episodes: Whole games with sampled actions, and as many with greedy ones.
        seed: Of the games and of the sampled actions.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The card.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.safetensors"
        save_agent(draft, network, settings, half=True)
        stored, _ = load_agent(draft)
        games = partial(play, stored, settings, num_episodes=num_episodes, seed=seed)
        returns = {
            kind: _summary(games(greedy=kind == "greedy", progress=progress))
            for kind in ("sampled", "greedy")
        }
    shape = f"{settings.stack_num}, {settings.img_height}, {settings.img_width}"
    how = "lightning_sobolev.atari.play with the environment named here, "
    card = {
        "actions": list(Environments(settings, seed=0).action_meanings),
        "input": f"float32 in 0..1 (bytes / 255), [batch, {shape}], the newest frame last",
        "output": "logits of the actions",
        **about,
        "versions": {name: version(name) for name in _LIBRARIES},
        "returns": {
            "how": f"{how}num_episodes={num_episodes}, seed={seed}; rewards unclipped",
            **returns,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_agent(path, network, settings, half=True, about=card)


def _summary(result: EpisodeReturns) -> dict[str, float | None]:
    error = result.standard_error
    return {
        "mean": round(result.mean, 3),
        "standard_error": None if math.isnan(error) else round(error, 3),
        "least": min(result.returns),
        "most": max(result.returns),
        "num_episodes": len(result.returns),
        "num_truncated": result.num_truncated,
        "mean_length": round(float(np.mean(result.lengths)), 1),
    }
