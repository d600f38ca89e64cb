import pytest
import torch

from lightning_sobolev.experiments.regression.mlp import ACTIVATIONS, mlp


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_depth_width_and_outputs_are_those_asked_for(activation):
    assert mlp(3, width=8, activation=activation)(torch.rand(5, 3)).shape == (5,)
    assert mlp(3, 1, width=8)(torch.rand(5, 3)).shape == (5, 1)
    shapes = [tuple(p.shape) for p in mlp(2, depth=3, width=7).parameters() if p.ndim == 2]
    assert shapes == [(7, 2), (7, 7), (7, 7), (1, 7)]


@pytest.mark.parametrize("frequency", [3.0, 30.0])
def test_what_enters_a_later_sine_begins_as_a_standard_normal(frequency):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = mlp(2, width=1024, depth=3, activation="sine", frequency=frequency)
        x = 20 * torch.rand(512, 2) - 10  # wide enough for the first sine to turn often
    with torch.no_grad():
        for last in (2, 4):
            entering = frequency * (net[: last + 1](x) - net[last].bias)
            assert abs(float(entering.mean())) < 0.15
            assert 0.9 < float(entering.std()) < 1.1


def test_the_first_layer_of_sines_is_spread_over_the_inputs():
    weight = mlp(4, width=4096, activation="sine")[0].weight.detach()
    assert float(weight.abs().max()) <= 1 / 4
    assert float(weight.std()) == pytest.approx(1 / 4 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "step"}, "activation must be one of .*, got 'step'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"frequency": 0.0}, "frequency must be positive, got 0.0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        mlp(2, **changes)
