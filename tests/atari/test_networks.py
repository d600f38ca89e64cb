import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.atari import (
    AtariSettings,
    CenteredPolicy,
    NatureCNN,
    SmallCNN,
    log_probabilities,
    scale_pixels,
)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (NatureCNN, [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (512, 64 * 7 * 7), (6, 512)]),
        (SmallCNN, [(16, 4, 8, 8), (32, 16, 4, 4), (256, 32 * 9 * 9), (6, 256)]),
    ],
)
def test_layers_are_those_of_the_papers(kind, layers):
    network = kind(6)
    weights = [tuple(p.shape) for name, p in network.named_parameters() if "weight" in name]
    assert weights == layers
    assert network(torch.rand(3, 4, 84, 84)).shape == (3, 6)


def test_networks_are_those_of_a_game():
    settings = AtariSettings("breakout", stack_num=2, img_height=50, img_width=60)
    network = SmallCNN.for_game(settings)
    assert network(torch.rand(2, 2, 50, 60)).shape == (2, 4)
    for x in (torch.zeros(2, 2, 50, 60, dtype=torch.uint8), torch.zeros(2, 3, 50, 60)):
        with pytest.raises(ValueError, match=r"x must be floating point \[batch, 2, 50, 60\], got"):
            network(x)
    with pytest.raises(ValueError, match="too small for the kernels: 20 x 84"):
        NatureCNN.for_game(AtariSettings("pong", img_height=20))


def test_pixels_are_scaled_once():
    bytes_ = torch.arange(256, dtype=torch.uint8)
    assert_close(scale_pixels(bytes_), torch.linspace(0, 1, 256))
    assert bytes_[-1] == 255
    with pytest.raises(ValueError, match=r"stacks must be uint8, got torch\.float32"):
        scale_pixels(torch.zeros(3))


def test_log_probabilities_are_the_normalised_logits():
    network = SmallCNN(6).eval()
    stacks = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    expected = network(torch.from_numpy(stacks) / 255).log_softmax(-1)
    assert_close(torch.from_numpy(log_probabilities(network, stacks)), expected.detach())
    with pytest.raises(ValueError, match=r"network must answer \[5, actions\], got \[5, 1, 6\]"):
        log_probabilities(lambda x: network(x)[:, None], stacks)


def test_a_centered_policy_sees_the_difference_from_the_mean():
    policy, x, mean = SmallCNN(6), torch.rand(2, 4, 84, 84), torch.rand(4, 84, 84)
    centered = CenteredPolicy(policy, gain=2.0)
    centered.center_on(mean)
    assert_close(centered(x), policy(2.0 * (x - mean)))
    twin = CenteredPolicy(SmallCNN(6), gain=2.0)
    twin.load_state_dict(centered.state_dict())
    assert_close(twin(x), centered(x))
    with pytest.raises(ValueError, match=r"mean must have shape \[4, 84, 84\], got \[84, 84\]"):
        CenteredPolicy(SmallCNN(6)).center_on(torch.zeros(84, 84))
    with pytest.raises(ValueError, match="gain must be positive, got 0"):
        CenteredPolicy(SmallCNN(6), gain=0.0)
