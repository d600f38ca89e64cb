"""What decides a training, checked when it is built."""

from dataclasses import dataclass

import torch

PRECISIONS = ("auto", "bf16-mixed", "32-true")
_WHOLE = ("n_steps", "n_epochs", "batch_size", "num_recent_games")
_POSITIVE = ("learning_rate", "clip_range", "max_grad_norm")


@dataclass(frozen=True, slots=True)
class PPOSettings:
    """Hyper-parameters of proximal policy optimisation; the defaults are usual for Atari.

    Args:
        n_steps: Steps of every game between two updates.
        n_epochs: Passes over them.
        batch_size: States in a mini-batch.
        learning_rate: Of Adam at the first step; falls to zero in a straight line.
        clip_range: Largest change of a probability ratio that is rewarded; falls likewise.
        gamma: Discount per step.
        gae_lambda: How far advantages look ahead.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the critic's squared error.
        max_grad_norm: Longest gradient.
        life_ends: Whether a lost life ends an episode for the advantage; the game goes on.
        num_recent_games: Games over which the mean return is taken while training.
        precision: Of the convolutions: ``"bf16-mixed"``, ``"32-true"``, or ``"auto"``, which takes
            bfloat16 where the hardware has it.

    Raises:
        ValueError: If a number is out of range or the precision is unknown.

    Source:
        Schulman et al. 2017, Proximal policy optimization algorithms, table 5; 4 epochs, half the
        weight for the critic and lost lives as ends as in RL Baselines3 Zoo, ``ppo`` for Atari.
    """

    n_steps: int = 128
    n_epochs: int = 4
    batch_size: int = 256
    learning_rate: float = 2.5e-4
    clip_range: float = 0.1
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    life_ends: bool = True
    num_recent_games: int = 100
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in _WHOLE:
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name in _POSITIVE:
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {value}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """When a training stops before its last step; it can go on from there.

    Args:
        stop_at: Mean return of the last games that is enough.
        max_minutes: Minutes that this run may train.

    Raises:
        ValueError: If there is no time at all.
    """

    stop_at: float | None = None
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be positive or null, got {self.max_minutes}")


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Decide ``"auto"``: bfloat16 without hardware for it is many times slower than float32.

    Args:
        precision: One of ``PRECISIONS``.
        device: Where the network works.

    Returns:
        Whether to compute in bfloat16.
    """
    if precision != "auto":
        return precision == "bf16-mixed"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # new in torch 2.9
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
