"""Fused norms are silently wrong under a double backward; written out they are right."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev.observe.remedies import ExactNorms


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


# A second forward leaves no trace in the statistics


@pytest.mark.parametrize("evaluate", [True, False])
def test_running_statistics_stay_where_the_steps_own_forward_left_them(evaluate, x):
    norm = nn.BatchNorm1d(3).double()
    y = norm(x)
    buffers = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    identities = {name: id(buffer) for name, buffer in norm.named_buffers()}
    with batch_norm_aside(norm, evaluate=evaluate):
        again = norm(x)
        assert norm.training != evaluate
    assert_close(dict(norm.named_buffers()), buffers, rtol=0, atol=0)
    assert identities == {name: id(buffer) for name, buffer in norm.named_buffers()}
    assert norm.training
    (y.sum() + again.sum()).backward()  # neither forward's memory was written to
    assert evaluate or torch.equal(y, again)


def test_norms_that_the_user_holds_in_eval_stay_there(x):
    norm = nn.BatchNorm1d(3).double().eval()
    with batch_norm_aside(norm, evaluate=False):
        norm(x)
        assert not norm.training
    assert not norm.training
    assert_close(norm.running_mean, torch.zeros(3).double())


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
