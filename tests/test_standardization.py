import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import Standardized, Standardizer
from tests._reference import dense_hessian, dense_jacobian

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [((3,), (2,)), ((3,), ()), ((2, 2), (1,)), ((2,), (2, 2))]


@pytest.fixture
def rand(generator):
    return lambda *shape: torch.rand(shape, generator=generator)


class Wavy(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.out = outputs
        size = torch.Size(outputs).numel()
        self.linear = nn.Linear(torch.Size(inputs).numel(), size)

    def forward(self, x):
        return self.linear(x.flatten(1)).sin().reshape(len(x), *self.out)


def standardized(inputs, outputs, rand):
    x, y = 30 * rand(20, *inputs) - 7, 500 * rand(20, *outputs) + 1e3
    return Standardized(Wavy(inputs, outputs), Standardizer.fit(x, y)), x[:3]


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_derivatives_of_the_bare_network_are_those_of_the_whole_in_other_units(
    inputs, outputs, rand
):
    net, x = standardized(inputs, outputs, rand)
    units, inner = net.units, net.network
    jacobian, hessian = dense_jacobian(net, x), dense_hessian(net, x)
    bare = units.inputs(x)
    assert_close(units.jacobian(jacobian), dense_jacobian(inner, bare))
    assert_close(units.hessian(hessian), dense_hessian(inner, bare))
    assert_close(units.jacobian(dense_jacobian(inner, bare), undo=True), jacobian)
    assert_close(units.hessian(dense_hessian(inner, bare), undo=True), hessian)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
def test_the_derivative_in_user_units_is_the_slope_of_what_is_predicted(inputs, outputs, rand):
    net, x = standardized(inputs, outputs, rand)
    v, h = rand(*x.shape), 1e-5
    slope = (net(x + h * v) - net(x - h * v)) / (2 * h)
    bare, direction = net.units.inputs(x), net.units.tangents(v)
    _, pushed = torch.func.jvp(net.network, (bare,), (direction,))
    assert_close(net.units.pushed(pushed, undo=True), slope, rtol=1e-7, atol=1e-6)
    assert_close(net.units.pushed(slope), pushed, rtol=1e-7, atol=1e-8)


def test_there_and_back_is_where_one_was(rand):
    x, y = rand(9, 2, 3), 100 + rand(9, 4)
    units = Standardizer.fit(x, y)
    assert_close(units.inputs(units.inputs(x), undo=True), x)
    assert_close(units.targets(units.targets(y), undo=True), y)
    assert_close(units.tangents(units.tangents(x), undo=True), x)
    one, zero = torch.ones(2, 3), torch.zeros(4)
    assert_close(units.inputs(x).std(0, correction=0), one)
    assert_close(units.targets(y).mean(0), zero, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_keeps_its_scale(dtype, rand):
    x = rand(50, 3).to(dtype)
    x[:, 1] = 0.1  # its deviation is rounding error
    units = Standardizer.fit(x, torch.full((50,), 1e6 / 3, dtype=dtype))
    assert units.x_std[1] == 1.0
    assert units.y_std == 1.0
    assert_close(units.jacobian(x)[:, 1], x[:, 1])


def test_a_value_of_shape_batch_and_batch_by_one_are_the_same(rand):
    x, y = rand(9, 2), rand(9)
    units = Standardizer.fit(x, y)
    assert_close(units.targets(y[:, None]), units.targets(y)[:, None])
    assert_close(units.pushed(y[:, None]), units.pushed(y)[:, None])
    assert_close(units.jacobian(x[:, None]), units.jacobian(x)[:, None])


def test_unknown_entries_stay_unknown(rand):
    jacobian = rand(4, 2)
    jacobian[1, 0] = float("nan")
    units = Standardizer.fit(rand(4, 2), rand(4))
    assert_close(units.jacobian(jacobian).isnan(), jacobian.isnan())


def test_state_is_loaded_into_units_of_the_same_shapes(rand):
    net, x = standardized((3,), (2,), rand)
    again = Standardized(Wavy((3,), (2,)), Standardizer(3, 2))
    again.load_state_dict(net.state_dict())
    assert_close(again(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 2), (4, 3, 3), (4,)])
def test_a_jacobian_of_another_shape_is_refused(shape, rand):
    units = Standardizer.fit(rand(4, 3), rand(4, 2))
    with pytest.raises(ValueError, match=r"jacobian must have shape \[batch, \*out, \*in\]"):
        units.jacobian(rand(*shape))


def test_data_without_a_deviation_are_refused(rand):
    with pytest.raises(ValueError, match="x must be finite"):
        Standardizer.fit(torch.full((4, 2), float("inf")), rand(4))
    with pytest.raises(ValueError, match=r"y must be \[rows, ...\] with as many rows as x"):
        Standardizer.fit(rand(4, 2), rand(3))
