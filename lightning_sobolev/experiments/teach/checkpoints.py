"""Everything that a training needs to go on, in one file of tensors and plain values.

The zip that stable-baselines3 writes is a pickle: this file is read with ``weights_only=True``. Not
in it are the games, which cannot be saved: after an interruption new games begin.
"""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from lightning_sobolev._files import whole

FORMAT = 1


def save_checkpoint(path: Path, learner: PPO, about: dict[str, Any]) -> None:
    """Write a learner between two updates and what else is given, whole or not at all."""
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    key = numpy_state["state"]["key"].tolist()
    state = {
        "format": FORMAT,
        "policy": learner.policy.state_dict(),
        "optimizer": learner.policy.optimizer.state_dict(),
        "num_timesteps": learner.num_timesteps,
        "recent_games": [dict(game) for game in learner.ep_info_buffer or ()],
        # the learner draws actions from torch's generator and mini-batches from numpy's global one
        "generators": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": key}},
        },
        **about,
    }
    with whole(path) as writing:
        torch.save(state, writing)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` wrote; nothing in it is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated kinds for a damaged file
        raise ValueError(f"ckpt must be a checkpoint of a training, got {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"ckpt must be a checkpoint of a training in format {FORMAT}, got {path}")
    return state


def restore(learner: PPO, state: dict[str, Any]) -> None:
    """Put a new learner, and the process's generators, where the checkpoint was taken."""
    learner.set_parameters({"policy": state["policy"], "policy.optimizer": state["optimizer"]})
    learner.num_timesteps = state["num_timesteps"]  # schedules follow from it
    learner.ep_info_buffer = deque(state["recent_games"], maxlen=learner._stats_window_size)
    learner.ep_success_buffer = deque(maxlen=learner._stats_window_size)
    generators = state["generators"]
    torch.set_rng_state(generators["torch"])
    if generators["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    np.random.set_state(generators["numpy"])
