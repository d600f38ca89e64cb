"""Value, Jacobian and Hessian of a function row by row, by plain torch.func, and what a jet says.

``fn`` takes a point and what else belongs to its row, without the batch's axis.
"""

import torch
from torch.func import jacrev, vmap
from torch.testing import assert_close

from lightning_sobolev._types import Query


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
