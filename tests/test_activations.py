import itertools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.activations import ReCU, ReQU, scale_by_sample

pytestmark = pytest.mark.usefixtures("float64")

CLOSED_FORMS = {
    ReCU: [lambda p: p**3, lambda p: 3 * p**2, lambda p: 6 * p],
    ReQU: [lambda p: p**2, lambda p: 2 * p, lambda p: 2 * (p > 0)],
}


@pytest.mark.parametrize("layer", CLOSED_FORMS)
def test_derivatives_up_to_order_two(layer):
    x = torch.tensor([-2.0, -0.5, 0.0, 0.25, 3.0])
    positive = x.clamp_min(0)
    value, first, second = (form(positive).to(x) for form in CLOSED_FORMS[layer])
    fn = layer()
    assert_close(fn(x), value)
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(fn(leaf).sum(), leaf, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), leaf)
    assert_close(slope.detach(), first)
    assert_close(bend, second)
    pushed = torch.func.jvp(
        lambda x: torch.func.jvp(fn, (x,), (torch.ones_like(x),))[1], (x,), (torch.ones_like(x),)
    )
    assert_close(pushed[0], first)
    assert_close(pushed[1], second)
    assert_close(torch.func.vmap(torch.func.hessian(fn))(x), second)


@pytest.mark.parametrize("layer", CLOSED_FORMS)
def test_every_layer_begins_with_a_mean_square_of_one(layer, generator):
    torch.manual_seed(0)
    sizes = [3, 48, 48, 48, 1]
    layers = [m for i, o in itertools.pairwise(sizes) for m in (nn.Linear(i, o), layer())]
    net = nn.Sequential(*layers[:-1])
    x = torch.randn(500, 3, generator=generator)
    scale_by_sample(net, x)
    for module in net:
        x = module(x)
        if isinstance(module, nn.Linear):
            assert_close(x.square().mean().detach(), torch.tensor(1.0))


def test_what_cannot_be_scaled_is_named():
    with pytest.raises(ValueError, match=r"sample must give Linear.* got 0"):
        scale_by_sample(nn.Linear(2, 3, bias=False), torch.zeros(4, 2))

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match="net must call every linear layer, got no call"):
        scale_by_sample(Unused(), torch.ones(4, 2))
