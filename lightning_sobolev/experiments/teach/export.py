"""A trained policy as a stored agent: judged as it is stored, described, ready to teach."""

import math
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from lightning_sobolev.atari.agents.cards import Card, load_agent, save_agent
from lightning_sobolev.atari.environments import AtariSettings, Environments
from lightning_sobolev.atari.evaluate import EpisodeReturns, play
from lightning_sobolev.atari.networks import NatureCNN
from lightning_sobolev.atari.policy import choose, log_probabilities
from lightning_sobolev.experiments.run.threads import one_thread

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
        num_episodes: Whole games with drawn actions, and as many with the likeliest.
        seed: Of the games and of the drawn actions.
        progress: Whether to show a progress bar (on a terminal).

    Returns:
        The card.
    """
    with tempfile.TemporaryDirectory() as folder, one_thread():
        draft = Path(folder) / "draft.safetensors"
        save_agent(draft, network, settings, half=True)
        stored, _ = load_agent(draft)
        games = partial(play, stored, settings, num_episodes=num_episodes, seed=seed)
        played = {
            way: games(greedy=way == "greedy", progress=progress) for way in ("sampled", "greedy")
        }
        rounding = _rounding(network, stored, settings, seed=seed)
    environments = Environments(settings, seed=0)
    card = {
        "actions": list(environments.action_meanings),
        "input": _input_of(settings),
        "output": "logits of the actions",
        **about,
        "versions": {name: version(name) for name in _LIBRARIES},
        "returns": {
            "how": "lightning_sobolev.atari.play with the environment named here, "
            f"num_episodes={num_episodes}, seed={seed}; rewards unclipped",
            **{way: _summary(result) for way, result in played.items()},
        },
        "half_precision": rounding,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_agent(path, network, settings, half=True, about=card)


def _input_of(settings: AtariSettings) -> str:
    shape = f"{settings.stack_num}, {settings.img_height}, {settings.img_width}"
    return f"float32 in 0..1 (bytes / 255), [batch, {shape}], the newest picture last"


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


def _rounding(
    exact: nn.Module, stored: nn.Module, settings: AtariSettings, *, seed: int, num_steps: int = 256
) -> dict[str, Any]:
    """Compare log-probabilities before and after rounding, on the agent's own play."""
    environments = Environments(settings, seed)
    stacks, rng, errors = environments.reset(), np.random.default_rng(seed), []
    for _ in range(num_steps):
        answer = log_probabilities(stored, stacks)
        errors.append(np.abs(answer - log_probabilities(exact, stacks)))
        stacks = environments.step(choose(answer, rng)).stacks
    return {
        "stored": "float16, but for the first layer, which is float32",
        "largest_log_prob_error": float(np.max(errors)),
        "mean_log_prob_error": float(np.mean(errors)),
        "measured_on": f"{num_steps * settings.num_envs:,} states of the agent's own play, "
        "against the weights in float32",
    }
