"""Noise has the covariance that is stated, wherever it is put."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.layers import (
    NoiseInjection,
    inject_noise,
    noise_penalty,
    switch_evaluation_noise,
)
from tests._laws import assert_unbiased
from tests._reference import parameter_gradients_by_differences

pytestmark = pytest.mark.usefixtures("float64")
PLACES = ["weight", "input", "output"]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def convolutions():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))


def images(count=5):
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def noisy(net=None, where="weight", example=None, **options):
    net = convolutions() if net is None else net
    example = images() if example is None else example
    return inject_noise(net, where, example=None if where == "weight" else example, **options)


def at_seed(net, x, seed=3):
    torch.manual_seed(seed)
    return net(x)


def dense_covariance(noise, std):
    """s^2 (diag(alpha^2) + F^T F), element by element."""
    alpha, rows = noise.alpha.detach().flatten(), noise.factor
    size = len(alpha)
    covariance = torch.zeros(size, size)
    for i in range(size):
        covariance[i, i] += alpha[i] ** 2
        for row in [] if rows is None else rows.detach().flatten(1):
            covariance[i] += row[i] * row
    return std**2 * covariance


def outer(samples):
    flat = samples.flatten(1)
    return flat[:, :, None] * flat[:, None, :]


@pytest.mark.parametrize("color", [True, False])
def test_weights_have_the_stated_covariance(color):
    layer = inject_noise(nn.Linear(3, 2), rank=2, color=color)
    noise = layer.parametrizations.weight[0]
    with torch.no_grad():
        noise.alpha.copy_(torch.tensor([[0.1, 0.5, 1.0], [0.0, -0.7, 0.3]]))
        if color:
            noise.factor.normal_()
        clean = layer.parametrizations.weight.original
        drawn = torch.stack([layer.weight - clean for _ in range(3000)])
    assert_unbiased(drawn, torch.zeros(2, 3))
    assert_unbiased(outer(drawn), dense_covariance(noise, clean.std(correction=0)))


@pytest.mark.parametrize("where", ["input", "output"])
@pytest.mark.parametrize("color", [True, False])
def test_activations_have_the_stated_covariance_in_every_row(where, color):
    net = nn.Sequential(nn.Conv1d(1, 1, 2, bias=False), nn.Tanh())
    example = torch.randn(50, 1, 4)
    clean = {"input": example, "output": net[0](example).detach()}[where]
    noisy(net, where, example, rank=2, color=color)
    noise = getattr(net[0], f"{where}_noise")
    with torch.no_grad():
        noise.alpha.uniform_(-1, 1)
        if color:
            noise.factor.normal_()
        x = torch.ones(20_000, *clean.shape[1:])
        drawn = noise(x) - x
        through = net[0](torch.zeros(20_000, 1, 4))
    expected = dense_covariance(noise, clean.std(correction=0))
    assert_unbiased(outer(drawn), expected)
    if where == "output":
        assert_unbiased(outer(through), expected)


@pytest.mark.parametrize("place", ["conv", "linear"])
def test_correlated_directions_begin_apart(place):
    """Rows that are equal, as in the released code, would make one direction of five."""
    net = noisy(rank=5)
    layer = net[0] if place == "conv" else net[3]
    factor = layer.parametrizations.weight[0].factor
    assert torch.linalg.matrix_rank(factor.detach().flatten(1)) == 5
    loss = sum(net(images()).square().sum() for _ in range(3))
    assert torch.linalg.matrix_rank(torch.autograd.grad(loss, factor)[0].flatten(1)) > 1


def test_noise_grows_with_the_weights():
    """As a deviation does: in the released code it grows with the root of one."""
    layer = inject_noise(nn.Linear(3, 2))
    clean = layer.parametrizations.weight.original
    before = at_seed(lambda _: layer.weight - clean, None)
    with torch.no_grad():
        clean.mul_(7)
    assert_close(at_seed(lambda _: layer.weight - clean, None), 7 * before)


def test_rows_share_the_noise_of_weights_and_have_their_own_of_activations():
    row = images(1).expand(4, -1, -1, -1)
    shared = noisy()(row)
    assert_close(shared, shared[:1].expand_as(shared))
    own = noisy(where="output")(row)
    assert (own[0] - own[1]).abs().min() > 0


@pytest.mark.parametrize("where", PLACES)
def test_evaluation_is_with_noise_or_without(where):
    plain = convolutions()
    net = noisy(copy.deepcopy(plain), where)
    assert not torch.equal(net.eval()(images()), plain(images()))
    switch_evaluation_noise(net, on=False)
    assert_close(net(images()), plain(images()), rtol=0, atol=0)
    assert not torch.equal(net.train()(images()), plain(images()))
    assert not noisy(convolutions(), where, at_evaluation=False).eval()[0].training


@pytest.mark.parametrize("where", PLACES)
def test_parameters_get_the_gradient_of_a_fixed_draw(where):
    net = noisy(where=where, rank=2)
    loss = lambda: at_seed(net, images()).square().sum()  # noqa: E731
    loss().backward()
    expected = parameter_gradients_by_differences(loss, net)
    assert_close([p.grad for p in net.parameters()], expected, rtol=1e-6, atol=1e-7)


def test_weights_that_begin_at_zero_learn():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    inject_noise(layer)(torch.ones(1, 3)).sum().backward()
    assert_close(layer.parametrizations.weight.original.grad, torch.ones(2, 3))


@pytest.mark.parametrize("where", PLACES)
def test_copies_and_stored_states_answer_the_same(where):
    net, other = noisy(where=where), noisy(where=where, example=images() * 2)
    with torch.no_grad():
        [p.add_(0.1 * torch.randn_like(p)) for p in net.parameters()]
    copied = copy.deepcopy(net)
    other.load_state_dict(net.state_dict())
    expected = at_seed(net, images())
    assert torch.equal(at_seed(copied, images()), expected)
    assert torch.equal(at_seed(other, images()), expected)
    with torch.no_grad():  # the copy's noise is its own
        [p.zero_() for p in copied.parameters()]
    assert torch.equal(at_seed(net, images()), expected)
    assert at_seed(copied, images()).count_nonzero() == 0


def test_the_network_is_as_it_was_but_for_its_noise():
    net = nn.Sequential(convolutions(), nn.BatchNorm1d(3)).train()
    before = copy.deepcopy(net.state_dict())
    noisy(net, "output")
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    assert all(part.training for part in net.modules())
    assert type(net[0][0]) is nn.Conv2d


def test_the_penalty_is_the_sum_of_squares():
    net = noisy(rank=3)
    factors = [layer.parametrizations.weight[0].factor for layer in (net[0], net[3])]
    expected = sum(value**2 for factor in factors for value in factor.flatten().tolist())
    assert_close(noise_penalty(net), torch.tensor(expected))
    noise_penalty(net).backward()
    assert_close(factors[0].grad, 2 * factors[0].detach())
    assert noise_penalty(noisy(color=False)) == 0


def test_half_precision_stays():
    net = noisy(convolutions().float(), "output", images().float()).bfloat16()
    assert net(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "bias"}, "where must be one of .*, got 'bias'"),
        ({"rank": 0}, "rank must be at least 1 for colored noise, got 0"),
        ({"where": "input"}, "example must be a batch for inputs and outputs"),
        ({"example": torch.ones(1)}, "example must be .* None for weights, got Tensor"),
        ({"module": nn.Tanh()}, "module must have a linear or convolutional layer, got none"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        inject_noise(**{"module": nn.Linear(2, 2), **arguments})


def test_noise_is_put_in_once():
    for where in PLACES:
        net = noisy(where=where)
        with pytest.raises(ValueError, match=f"must not have noise on its {where} yet"):
            noisy(net, where)


def test_the_example_must_reach_every_layer():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 5)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ValueError, match=r"example must reach every layer, got none at .*=5"):
        inject_noise(Half(), "output", example=torch.randn(3, 2))


def test_other_shapes_and_networks_without_noise_are_refused():
    net = noisy(where="input")
    with pytest.raises(ValueError, match=r"x must be of shape \[..., \[1, 4, 4\]\], got"):
        net(torch.randn(2, 1, 6, 6))
    for function in (noise_penalty, lambda net: switch_evaluation_noise(net, on=True)):
        with pytest.raises(ValueError, match="module must have noise"):
            function(convolutions())
    with pytest.raises(ValueError, match="rank must be at least 0, got -1"):
        NoiseInjection(torch.Size([2]), rank=-1)
