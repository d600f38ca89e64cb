"""Nobody reads the gradient with respect to a large observed input: it is not computed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev.plugin import step
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import ManualRegressor, Regressor, callback, mlp
from tests.plugin._trainers import fit, points


class Leaf(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        node = x.grad_fn
        if node is not None:
            while node.next_functions:
                node = node.next_functions[0][0]
            self.leaf = [node.variable]  # in a list: a module's attribute would be copied
        return self.body(x)


@pytest.fixture
def every_input_is_large(monkeypatch):
    monkeypatch.setattr(step, "LARGE", 0)


@pytest.mark.usefixtures("every_input_is_large")
@pytest.mark.parametrize("kind", [Regressor, ManualRegressor])
def test_the_leaf_gets_no_gradient(kind):
    module = kind(Leaf())
    fit(module, points(), callback(), limit_train_batches=1)
    (leaf,) = module.net.leaf
    assert leaf.requires_grad
    assert leaf.grad is None
    assert all(parameter.grad is not None for parameter in module.parameters())


class OwnLeaf(Regressor):
    def training_step(self, batch, batch_idx):
        self.point = [batch[0].clone().requires_grad_()]
        self.weight = [torch.ones((), dtype=torch.float64, requires_grad=True)]
        return self.weight[0] * mse_loss(self(self.point[0]), batch[1])


@pytest.mark.parametrize(("rows", "is_left_out"), [(2**13, True), (2**13 - 1, False)])
def test_it_is_left_out_only_where_that_saves_more_than_it_costs(rows, is_left_out):
    module = Regressor(Leaf())
    module.net.body = mlp(dim=4)
    fit(module, points(rows, dim=4, batch_size=rows), callback(teacher=mlp(dim=4, seed=7)))
    (leaf,) = module.net.leaf
    assert (leaf.grad is None) == is_left_out


@pytest.mark.usefixtures("every_input_is_large")
def test_leaves_of_the_user_keep_their_gradients():
    module = OwnLeaf()
    fit(module, points(), callback(), limit_train_batches=1)
    assert module.point[0].grad is not None
    assert module.weight[0].grad is not None


class OwnBackward(Regressor):
    def backward(self, loss, *args, **kwargs):
        self.seen = (args, kwargs)
        loss.backward()


@pytest.mark.usefixtures("every_input_is_large")
def test_a_backward_of_the_users_own_is_called_as_it_was_written():
    module = OwnBackward()
    assert_close(taught(module), by_hand())
    assert module.seen == ((), {})
