"""Fused norms are silently wrong under a double backward; written out they are right."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import SobolevLoss, SobolevTerm
from lightning_sobolev.observe.remedies import ExactNorms
from tests._reference import dense_jacobian


def layers(dtype=torch.float64):
    made = {
        "layer norm": nn.LayerNorm([3, 4]),
        "layer norm without affine": nn.LayerNorm(4, elementwise_affine=False),
        "layer norm without bias": nn.LayerNorm(4, bias=False),
        "batch norm": nn.BatchNorm1d(3),
        "cumulative batch norm": nn.BatchNorm1d(3, momentum=None),
        "batch norm without statistics": nn.BatchNorm1d(3, track_running_stats=False),
        "batch norm in eval": nn.BatchNorm1d(3).eval(),
        "instance norm": nn.InstanceNorm1d(3, affine=True),
        "instance norm with statistics": nn.InstanceNorm1d(3, track_running_stats=True),
        "instance norm in eval": nn.InstanceNorm1d(3, track_running_stats=True).eval(),
    }
    return {name: layer.to(dtype) for name, layer in made.items()}


@pytest.fixture
def x(generator):
    return 2.0 + 3.0 * torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)


def randomize(layer):
    for number, parameter in enumerate(layer.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
    return layer


@pytest.mark.parametrize("name", layers())
def test_written_out_norms_are_the_fused_ones(name, x):
    fused, written_out = (randomize(layers()[name]) for _ in range(2))
    for _ in range(3):  # running statistics move alike
        expected = fused(x)
        with ExactNorms():
            assert_close(written_out(x), expected)
    assert_close(dict(written_out.named_buffers()), dict(fused.named_buffers()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["layer norm", "batch norm"])
def test_statistics_of_half_precision_are_taken_in_single(name, dtype, x):
    # a mean far from zero: in half precision alone the variance would be lost
    x = (x + 100.0).to(dtype)
    expected = layers()[name](x.double())
    with ExactNorms():
        found = layers(dtype)[name](x)
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0.02, atol=0.02)


# A replay leaves no trace in the statistics


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Sequential(nn.Flatten(), nn.Linear(12, 2))

    def forward(self, x):
        return self.last(self.norm(x).tanh())


def seeded(net):
    return randomize(net.double())


EVERY = {"projection": "basis", "num_projections": None, "normalize": "none"}
REPLAYS = {
    "in eval mode": (SobolevTerm(**EVERY), {"batch_norm": "eval"}),
    "on some rows": (SobolevTerm(rows=0.5, **EVERY), {}),
}


@pytest.mark.parametrize("replay", REPLAYS)
def test_running_statistics_stay_where_the_steps_own_forward_left_them(replay, x):
    term, options = REPLAYS[replay]
    net, teacher = seeded(Normed()), seeded(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    loss = SobolevLoss(teacher, term)
    with loss.observe(net, **options):
        y = net(x)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    identities = {name: id(buffer) for name, buffer in net.named_buffers()}
    report = loss()
    assert_close(dict(net.named_buffers()), buffers, rtol=0, atol=0)
    assert identities == {name: id(buffer) for name, buffer in net.named_buffers()}
    assert net.norm.training
    (y.sum() + report.loss).backward()  # neither forward's memory was written to
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_replay_in_eval_mode_uses_the_statistics_that_an_evaluation_would(x):
    net, teacher = seeded(Normed()), seeded(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
    loss = SobolevLoss(teacher, SobolevTerm(**EVERY))
    with loss.observe(net, batch_norm="eval"):
        net(x)
    found = loss().terms["order_1"]
    error = dense_jacobian(net.eval(), x) - dense_jacobian(teacher, x)
    assert_close(found, error.square().sum() / len(x))


@pytest.mark.parametrize("replay", REPLAYS)
def test_norms_that_the_user_holds_in_eval_stay_there(replay, x):
    term, options = REPLAYS[replay]
    net = seeded(Normed())
    net.norm.eval()
    loss = SobolevLoss(seeded(nn.Sequential(nn.Flatten(), nn.Linear(12, 2))), term)
    with loss.observe(net, **options):
        net(x)
    loss()
    assert not net.norm.training
    assert net.training
    assert_close(net.norm.running_mean, torch.zeros(3).double())


def test_torchs_own_functions_are_caught_as_well(x):
    one, other = torch.rand(2, 3, dtype=torch.float64)
    statistics = [torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)]
    calls = {
        torch.layer_norm: (x, (4,), None, None, 1e-5),
        torch.native_layer_norm: (x, (4,), None, None, 1e-5),
        torch.batch_norm: (x, one, other, *statistics, True, 0.1, 1e-5, False),
        torch.instance_norm: (x, one, other, None, None, True, 0.1, 1e-5, False),
    }

    def called(function, args):
        for buffer, value in zip(statistics, (0.0, 1.0), strict=True):
            buffer.fill_(value)
        return function(*args), [buffer.clone() for buffer in statistics]

    for function, args in calls.items():
        expected = called(function, args)
        with ExactNorms():
            found = called(function, args)
            written_out = function(args[0].clone().requires_grad_(), *args[1:])
        assert_close(found, expected)
        first = written_out[0] if isinstance(written_out, tuple) else written_out
        assert "Norm" not in str(first.grad_fn)
