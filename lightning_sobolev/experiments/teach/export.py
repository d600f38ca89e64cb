"""A trained policy as a stored agent: judged as it is stored, described, ready to teach."""

import math
import tempfile
from dataclasses import replace
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
    network: NatureCNN,
    settings: AtariSettings,
    about: dict[str, Any],
    *,
    path: str,
    num_envs: int,
    num_episodes: int,
    seed: int,
    progress: bool,
) -> Card:
    """Store an agent, in half precision, with a card that says what it is and how well it plays.

    That one plays: whole games with sampled actions, and as many with greedy ones.
    """
    # an agent is named by the games that it plays, however many played side by side
    settings = replace(settings, num_envs=num_envs)
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
    how = (
        "lightning_sobolev.atari.play with the environment named here, "
        f"num_episodes={num_episodes}, seed={seed}; rewards unclipped"
    )
    card = {
        "actions": list(Environments(settings, seed=0).action_meanings),
        "input": f"float32 in 0..1 (bytes / 255), [batch, {shape}], the newest frame last",
        "output": "logits of the actions",
        **about,
        "versions": {name: version(name) for name in _LIBRARIES},
        "returns": {"how": how, **returns},
    }
    return save_agent(Path(path), network, settings, half=True, about=card)


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
