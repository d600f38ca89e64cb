"""Nobody reads the gradient with respect to the observed input: it is not computed."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

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


def test_leaves_of_the_user_keep_their_gradients():
    module = OwnLeaf()
    fit(module, points(), callback(), limit_train_batches=1)
    assert module.point[0].grad is not None
    assert module.weight[0].grad is not None


class OwnBackward(Regressor):
    def backward(self, loss, *args, **kwargs):
        self.seen = (args, kwargs)
        loss.backward()


def test_a_backward_of_the_users_own_is_called_as_it_was_written():
    module = OwnBackward()
    assert_close(taught(module), by_hand())
    assert module.seen == ((), {})
