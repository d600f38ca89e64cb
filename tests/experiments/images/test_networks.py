import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lightning_sobolev.experiments.images.networks import image_cnn

ACTIVATIONS = {"relu": functional.relu, "elu": functional.elu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_small_network_is_three_convolutions_and_a_linear_layer_on_means(
    activation, batch_norm, generator
):
    net = image_cnn(3, 7, size=32, width=4, activation=activation, batch_norm=batch_norm).double()
    x = torch.randn(5, 3, 32, 32, generator=generator, dtype=torch.float64)
    h = x
    for block, (stride, padding) in zip(net, [(4, 0), (1, 1), (2, 1)], strict=False):
        h = functional.conv2d(h, block[0].weight, block[0].bias, stride, padding)
        if batch_norm:
            mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
            h = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        h = ACTIVATIONS[activation](h)
    h = functional.avg_pool2d(h, 2).flatten(1) @ net[3][2].weight.T + net[3][2].bias
    assert h.shape == (5, 7)
    assert_close(net(x), h, rtol=1e-10, atol=1e-12)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"activation must be one of .*, got 'step'"):
        image_cnn(activation="step")
