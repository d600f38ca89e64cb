"""Value, Jacobian and Hessian of a function row by row, by plain torch.func, and what a jet says.

``fn`` takes a point and what else belongs to its row, without the batch's axis.
"""

import lightning.pytorch as L
import torch
from torch.func import jacrev, vmap
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev._types import Query
from tests.kinds._by_hand import mlp


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def dense(fn, x, *others):
    return (
        vmap(fn)(x, *others),
        vmap(jacrev(fn))(x, *others),
        vmap(jacrev(jacrev(fn)))(x, *others),
    )


def assert_is_jet(jet, fn, x, *others, rtol=1e-10):
    """A jet with one axis of inputs and one of outputs is that of ``fn``."""
    value, jacobian, hessian = dense(fn, x, *others)
    u, v = numbers(2, *value.shape, seed=5), numbers(2, *x.shape, seed=6)
    near = {"rtol": rtol, "atol": rtol}
    assert_close(jet.value, value, **near)
    assert_close(jet.vjp(u), torch.einsum("pbo,boi->pbi", u, jacobian), **near)
    assert_close(jet.jvp(v), torch.einsum("boi,pbi->pbo", jacobian, v), **near)
    curved = torch.einsum("pbo,boij,pbj->pbi", u, hessian, v)
    assert curved.abs().max() > 1e-3, "the reference says nothing"
    assert_close(jet.hvp(u, v), curved, **near)


def ask(teacher, batch, x=None, rows=None, **options):
    x = batch["obs"] if x is None else x
    x = x if rows is None else x[rows]
    return teacher.at(Query(x, batch=batch, rows=rows, **options))


class Policy(L.LightningModule):
    """A student that sees the observation alone; weights move by the gradient itself."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, seed=4)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["obs"]), batch["y"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)
