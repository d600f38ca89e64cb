"""The agent's convolutions inside a stable-baselines3 policy, in bfloat16 where that is faster."""

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from lightning_sobolev.atari.networks import NatureCNN


class PixelFeatures(BaseFeaturesExtractor):
    """The body of :class:`NatureCNN`; heads and log-probabilities stay in float32.

    CPU autocast would leave ``log_softmax`` in bfloat16, where probabilities do not sum to one, so
    it ends with the body.

    Args:
        observation_space: Stacks of pictures, channels first.
        autocast: Whether the body computes in bfloat16; the weights are float32 in any case.
    """

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
    """Return the actor alone, as the other parts of the package take it.

    Args:
        policy: A policy with :class:`PixelFeatures` and one linear layer behind it.

    Returns:
        A copy on the CPU in eval mode, mapping pixels in 0..1 to logits; the critic is left out.

    Raises:
        ValueError: If the policy is built otherwise.
    """
    body, head = _parts(policy)
    stack_num, height, width = policy.observation_space.shape  # type: ignore[misc]
    network = NatureCNN(head.out_features, stack_num=stack_num, height=height, width=width)
    network.body.load_state_dict(body.body.state_dict())
    network.head.load_state_dict(head.state_dict())
    return network.eval()


def start_from(policy: ActorCriticPolicy, network: NatureCNN) -> None:
    """Give a policy the actor of a trained one; the inverse of :func:`network_of`.

    The critic begins at zero: a random one would send noise through the convolutions that it shares
    with the actor.

    Args:
        policy: As for :func:`network_of`; changed in place.
        network: Maps pixels in 0..1 to logits.

    Raises:
        ValueError: If the policy is built otherwise.
    """
    body, head = _parts(policy)
    body.body.load_state_dict(network.body.state_dict())
    head.load_state_dict(network.head.state_dict())
    for parameter in policy.value_net.parameters():
        torch.nn.init.zeros_(parameter)


def _parts(policy: ActorCriticPolicy) -> tuple[PixelFeatures, torch.nn.Linear]:
    body, head = policy.features_extractor, policy.action_net
    if not isinstance(body, PixelFeatures) or not isinstance(head, torch.nn.Linear):
        raise ValueError(
            f"policy must have PixelFeatures and a Linear action_net, got {type(body).__name__} "
            f"and {type(head).__name__}"
        )
    return body, head
