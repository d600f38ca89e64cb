"""Policies as stable-baselines3 trains and stores them, and small ones of our own."""

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC

from lightning_sobolev.policies import PolicyMLP

NAMES = {
    "body.0": "mlp_extractor.policy_net.0",
    "body.2": "mlp_extractor.policy_net.2",
    "head": "action_net",
}


def sb3_model(kind, env="CartPole-v1", **options):
    small = {
        "ppo": (PPO, {"n_steps": 8, "batch_size": 8, "n_epochs": 1}),
        "a2c": (A2C, {"n_steps": 4}),
        "dqn": (DQN, {"buffer_size": 32, "learning_starts": 8, "batch_size": 4}),
        "sac": (SAC, {"buffer_size": 32, "learning_starts": 8, "batch_size": 4}),
    }
    algorithm, settings = small[kind]
    net_arch = {"policy_kwargs": {"net_arch": [8, 6]}}
    model = algorithm(
        "MlpPolicy",
        gymnasium.make(env, disable_env_checker=True),
        seed=0,
        device="cpu",
        **{**settings, **net_arch, **options},
    )
    with torch.no_grad():  # a fresh policy head is nearly uniform
        for name, parameter in model.policy.named_parameters():
            if name.startswith(("action_net", "actor.")):
                parameter.mul_(3.0)
            if name == "log_std":
                parameter.add_(0.3)
    return model


def small_policy(num_observations=4, num_outputs=2, **options):
    """Return a policy that is the same in every run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PolicyMLP([num_observations, 8], num_outputs, **options).float()
    with torch.no_grad():
        policy.head.weight.mul_(5.0)
    return policy


def observations(count, size):
    return np.random.default_rng(3).normal(size=(count, size)).astype(np.float32)
