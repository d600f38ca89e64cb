"""The learner: stable-baselines3's PPO over this package's network, in bfloat16 if faster."""

from collections.abc import Mapping
from functools import partial
from operator import mul
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from lightning_sobolev.atari.networks import NatureCNN

PRECISIONS = ("auto", "bf16-mixed", "32-true")
_POSITIVE = ("n_steps", "n_epochs", "batch_size", "learning_rate", "clip_range")


def build_learner(
    ppo: Mapping[str, Any], env: VecEnv, seed: int, *, device: str = "auto", precision: str = "auto"
) -> PPO:
    """Return a silent learner at its first step; seeds the generators of the process.

    ``ppo`` are arguments of ``stable_baselines3.PPO``; ``learning_rate`` and ``clip_range`` fall
    from these values to zero in a straight line. ``precision`` is that of the convolutions.
    """
    for name in _POSITIVE:
        if not ppo[name] > 0:
            raise ValueError(f"{name} must be positive, got {ppo[name]}")
    for name in ("gamma", "gae_lambda"):
        if not 0 <= ppo[name] <= 1:
            raise ValueError(f"{name} must be in 0..1, got {ppo[name]}")
    states = ppo["n_steps"] * env.num_envs
    if states % ppo["batch_size"]:
        raise ValueError(
            f"batch_size must divide the {states} states of an update ({ppo['n_steps']} steps of "
            f"{env.num_envs} games), got {ppo['batch_size']}"
        )
    where = get_device(device)
    # the learner says which share of the steps remains
    falling = {name: partial(mul, ppo[name]) for name in ("learning_rate", "clip_range")}
    body = {
        "features_extractor_class": NatureFeatures,
        "features_extractor_kwargs": {"autocast": uses_bfloat16(precision, where)},
        "net_arch": [],
    }
    return PPO("CnnPolicy", env, **{**ppo, **falling}, policy_kwargs=body, seed=seed, device=where)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether convolutions compute in bfloat16 there."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision != "auto":
        return precision == "bf16-mixed"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # without hardware for it bfloat16 is many times slower than float32; new in torch 2.9
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class NatureFeatures(BaseFeaturesExtractor):
    """The body of :class:`NatureCNN`; autocast ends with it, as log-probabilities need float32."""

    def __init__(self, observation_space: spaces.Box, *, autocast: bool) -> None:
        stack_num, height, width = observation_space.shape
        network = NatureCNN(1, stack_num=stack_num, height=height, width=width)
        super().__init__(observation_space, network.head.in_features)
        self.body = network.body
        self.autocast = autocast

    def forward(self, observations: Float[Tensor, "batch *in"]) -> Float[Tensor, "batch hidden"]:
        """Return the hidden layer for pixels in 0..1."""
        device = observations.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            features: Tensor = self.body(observations)
        return features.float()


def network_of(policy: ActorCriticPolicy) -> NatureCNN:
    """Return a copy of the actor alone: on the CPU, in eval mode, from pixels in 0..1 to logits."""
    features, head = _actor(policy)
    stack_num, height, width = policy.observation_space.shape  # type: ignore[misc]
    network = NatureCNN(head.out_features, stack_num=stack_num, height=height, width=width)
    network.body.load_state_dict(features.body.state_dict())
    network.head.load_state_dict(head.state_dict())
    return network.eval()


def start_from(policy: ActorCriticPolicy, network: NatureCNN) -> None:
    """Give a policy the actor of a trained one.

    The critic begins at zero: a random one would send noise through the convolutions that it shares
    with the actor.
    """
    features, head = _actor(policy)
    features.body.load_state_dict(network.body.state_dict())
    head.load_state_dict(network.head.state_dict())
    for parameter in policy.value_net.parameters():
        torch.nn.init.zeros_(parameter)


def _actor(policy: ActorCriticPolicy) -> tuple[NatureFeatures, torch.nn.Linear]:
    features, head = policy.features_extractor, policy.action_net
    assert isinstance(features, NatureFeatures)
    assert isinstance(head, torch.nn.Linear)
    return features, head
