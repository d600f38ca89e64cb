import pytest
import torch

from lightning_sobolev.tasks.networks import ACTIVATIONS, mlp


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_are_independent(activation):
    net = mlp(3, width=8, activation=activation).double()
    x = torch.rand(5, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(net, x)
    assert jacobian.shape == (5, 5, 3)
    off_diagonal = ~torch.eye(5, dtype=torch.bool)
    assert (jacobian[off_diagonal] == 0).all()


def test_outputs_have_an_axis_when_asked_for():
    assert mlp(3, 1, width=8)(torch.rand(5, 3)).shape == (5, 1)
    assert mlp(3, width=8)(torch.rand(5, 3)).shape == (5,)


def test_depth_and_width_are_those_asked_for():
    shapes = [tuple(p.shape) for p in mlp(2, depth=3, width=7).parameters() if p.ndim == 2]
    assert shapes == [(7, 2), (7, 7), (7, 7), (1, 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "step"}, "activation must be one of .*, got 'step'"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_arguments_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        mlp(2, **changes)
