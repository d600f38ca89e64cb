"""Policies as other libraries train and store them, small in everything but the network."""

import gymnasium
import numpy as np
import torch
from stable_baselines3 import A2C, DQN, PPO
from torch import nn

LAST, FIRST = (84, 84, 4), (4, 84, 84)
SETTINGS = {
    "ppo": (PPO, LAST, {"n_steps": 8, "batch_size": 8, "n_epochs": 1}),
    "a2c": (A2C, FIRST, {"n_steps": 4}),
    "dqn": (DQN, LAST, {"buffer_size": 32, "learning_starts": 8, "batch_size": 4}),
}


class Noise(gymnasium.Env):
    """Frames of noise in which a larger action pays more."""

    def __init__(self, shape):
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = 5
        return self._frame(), {}

    def step(self, action):
        self._left -= 1
        return self._frame(), float(action), self._left == 0, False, {}

    def _frame(self):
        return self.np_random.integers(0, 256, self.observation_space.shape, np.uint8)


def sb3_model(name, *, steps=0, **options):
    algorithm, shape, settings = SETTINGS[name]
    model = algorithm("CnnPolicy", Noise(shape), seed=0, device="cpu", **{**settings, **options})
    return model.learn(steps) if steps else model


class CleanRLPPO(nn.Module):
    """The actor and critic of an Atari script: bytes in, divided inside."""

    def __init__(self, num_actions=6):
        super().__init__()
        self.network = nn.Sequential(*_body())
        self.actor = nn.Linear(512, num_actions)
        self.critic = nn.Linear(512, 1)

    def forward(self, x):
        return self.actor(self.network(x / 255.0))


class CleanRLDQN(nn.Module):
    def __init__(self, num_actions=6):
        super().__init__()
        self.network = nn.Sequential(*_body(), nn.Linear(512, num_actions))

    def forward(self, x):
        return self.network(x / 255.0)


def _body():
    for channels, out, kernel, stride in ((4, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):
        yield from (nn.Conv2d(channels, out, kernel, stride), nn.ReLU())
    yield from (nn.Flatten(), nn.Linear(64 * 7 * 7, 512), nn.ReLU())


def seeded(network_class, **options):
    """Return a network that is the same in every run, with a policy that is not uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network_class(**options)
    with torch.no_grad():
        for head in [m for m in network.modules() if isinstance(m, nn.Linear)]:
            head.weight.mul_(2)
    return network
