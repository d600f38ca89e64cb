"""The learner: stable-baselines3's PPO with this package's network."""

from collections.abc import Callable

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import get_device

from lightning_sobolev.experiments.teach.features import PixelFeatures
from lightning_sobolev.experiments.teach.games import Games
from lightning_sobolev.experiments.teach.settings import PPOSettings, uses_bfloat16


def build_learner(
    settings: PPOSettings, games: Games, *, seed: int, device: torch.device | str = "auto"
) -> PPO:
    """Return a learner at its first step; seeds the generators of the process.

    Args:
        settings: The hyper-parameters.
        games: What it plays.
        seed: Of weights, actions and mini-batches.
        device: Where the network works; ``"auto"`` takes a GPU where there is one.

    Returns:
        The learner, silent until it gets a logger.

    Raises:
        ValueError: If an update does not consist of whole mini-batches.
    """
    states = settings.n_steps * games.num_envs
    if states % settings.batch_size:
        raise ValueError(
            f"batch_size must divide the {states} states of an update ({settings.n_steps} steps of "
            f"{games.num_envs} games), got {settings.batch_size}"
        )
    where = get_device(device)
    return PPO(
        "CnnPolicy",
        games,
        learning_rate=_to_zero(settings.learning_rate),
        clip_range=_to_zero(settings.clip_range),
        n_steps=settings.n_steps,
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.ent_coef,
        vf_coef=settings.vf_coef,
        max_grad_norm=settings.max_grad_norm,
        stats_window_size=settings.num_recent_games,
        policy_kwargs={
            "features_extractor_class": PixelFeatures,
            "features_extractor_kwargs": {"autocast": uses_bfloat16(settings.precision, where)},
            "net_arch": [],
        },
        seed=seed,
        device=where,
    )


def _to_zero(start: float) -> Callable[[float], float]:
    """Fall in a straight line; the learner says which share of the steps remains."""
    return lambda remaining: start * remaining
