"""Everything that a training needs to go on, in one file of tensors and plain values.

Not in it are the games themselves, which cannot be saved: after an interruption new games begin.
"""

import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from lightning_sobolev._files import whole

FORMAT = 1
State = dict[str, Any]


def save_checkpoint(path: Path, learner: PPO, about: State) -> None:
    """Write a checkpoint whole or not at all.

    Args:
        path: The file.
        learner: Between two updates.
        about: What else to keep; tensors and plain values.
    """
    state = {
        "format": FORMAT,
        "policy": learner.policy.state_dict(),
        "optimizer": learner.policy.optimizer.state_dict(),
        "num_timesteps": learner.num_timesteps,
        "num_updates": learner._n_updates,
        "recent_games": [dict(game) for game in learner.ep_info_buffer or ()],
        "generators": _generators(),
        **about,
    }
    with whole(path) as writing:
        torch.save(state, writing)


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        What :func:`save_checkpoint` wrote.

    Raises:
        ValueError: If the file is damaged or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen unrelated kinds for a damaged file
        raise ValueError(f"ckpt must be a checkpoint of a training, got {path}: {error}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"ckpt must be a checkpoint of a training in format {FORMAT}, got {path}")
    return state


def restore(learner: PPO, state: State) -> None:
    """Put a learner where the checkpoint was taken, generators of the process included.

    Schedules follow from the number of steps.

    Args:
        learner: A new one, built as the saved one was.
        state: The checkpoint.
    """
    learner.policy.load_state_dict(state["policy"])
    learner.policy.optimizer.load_state_dict(state["optimizer"])
    learner.num_timesteps = state["num_timesteps"]
    learner._n_updates = state["num_updates"]
    learner.ep_info_buffer = deque(state["recent_games"], maxlen=learner._stats_window_size)
    learner.ep_success_buffer = deque(maxlen=learner._stats_window_size)
    generators = state["generators"]
    torch.set_rng_state(generators["torch"])
    if generators["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    numpy_state = generators["numpy"]
    numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy_state)


def _generators() -> State:
    # the learner draws actions from torch's generator and mini-batches from numpy's global one
    state: State = dict(np.random.get_state(legacy=False))
    key = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {**state, "state": {"key": key, "pos": int(state["state"]["pos"])}},
    }


def mean_return(learner: PPO) -> tuple[float, int]:
    """Return the mean return of the last games, NaN before the first, and their number.

    Args:
        learner: One that has played.
    """
    games = learner.ep_info_buffer or ()
    mean = sum(game["r"] for game in games) / len(games) if games else math.nan
    return mean, len(games)
