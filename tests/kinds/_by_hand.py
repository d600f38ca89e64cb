"""The term by hand: dense derivatives in float64, and what one step subtracted because of it.

The references use nothing of the package. Exact directions are scaled such that their mean is the
squared Frobenius norm.
"""

import logging
import warnings
from contextlib import contextmanager

import lightning.pytorch as L
import pytest
import torch
from lightning_utilities.core import rank_zero
from torch import nn
from torch.func import jacrev, vmap
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_sobolev import AnalyticTeacher, SobolevCallback, SobolevSpec, SobolevTerm, Teacher

EXACT = {"projection": "basis", "num_projections": None, "normalize": "none"}
QUIET = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    "max_epochs": 1, "precision": "64-true",
}  # fmt: skip
RANDOM = {"projection": "gaussian", "num_projections": 1, "normalize": "none"}
SIDES = ("cotangent", "tangent")


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, Y = numbers(6, 3), numbers(6, 2, seed=1)


def mlp(inputs=3, outputs=2, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def target(x):
    return torch.stack([x.sum(-1).sin(), x.square().sum(-1).cos()], -1)


class Step(L.LightningModule):
    """Mean squared error and SGD with step 1: weights move by the gradient itself."""

    def __init__(self, net=None):
        super().__init__()
        self.net = mlp() if net is None else net

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def loader(batches):
    return DataLoader(list(batches), batch_size=None)


def trainer(*callbacks, **flags):
    return L.Trainer(callbacks=list(callbacks), **{**QUIET, **flags})


def fit(module, batches, *callbacks, val=None, ckpt_path=None, **flags):
    used = trainer(*callbacks, **flags)
    val = None if val is None else loader(val)
    used.fit(module, loader(batches), val, ckpt_path=ckpt_path)
    return used


def exact(teacher=target, *, doctor=False, on="identity", term=(), **options):
    """Return a callback with one exact term and, unless it is what is tested, no doctor."""
    if not isinstance(teacher, nn.Module) and not hasattr(teacher, "at"):
        teacher = AnalyticTeacher(teacher)
    spec = SobolevSpec(terms=[SobolevTerm(**{**EXACT, **dict(term)})], on=on)
    return SobolevCallback(teacher, spec, doctor=doctor, **options)


def weights(module):
    return parameters_to_vector(module.parameters()).detach().clone()


def share(make, batches, *callbacks, **flags):
    """What the steps subtracted because of the callbacks; the steps run without them, too."""
    taught, plain = make(), make()
    fit(taught, batches, *callbacks, **flags)
    fit(plain, batches, **flags)
    return weights(plain) - weights(taught)


def jacobian(f, x):
    return vmap(jacrev(f))(x)


def frobenius(f, g, x):
    """Return the mean over the rows of the squared distance of both Jacobians."""
    return distance(jacobian(f, x), jacobian(g, x))


def by_rows(f, x):
    """Return the Jacobian by plain autograd, an output at a time: for what torch.func refuses."""
    x = x.clone().requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(y[:, c].sum(), x, create_graph=True)[0] for c in range(y.shape[1])]
    return torch.stack(rows, 1)


def distance(ours, theirs):
    return (ours - theirs).square().flatten(1).sum(1).mean()


class Overheard(Teacher):
    """A closed form that remembers along which directions it was asked, term by term."""

    def __init__(self, value=target):
        self.source, self.along = AnalyticTeacher(value), []

    def at(self, query):
        return _Overheard(self.source.at(query), self.along)


class _Overheard:
    def __init__(self, jet, along):
        self.jet, self.value, self.along = jet, jet.value, along

    def vjp(self, u):
        self.along.append(u)
        return self.jet.vjp(u)

    def jvp(self, v):
        self.along.append(v)
        return self.jet.jvp(v)


def along(directions, side, net, x):
    """Return the term without a scale, along given directions."""
    contraction = {"cotangent": "pbo,boi->pbi", "tangent": "pbi,boi->pbo"}[side]
    errors = torch.einsum(contraction, directions, jacobian(net, x) - jacobian(target, x))
    return errors.square().flatten(2).sum(-1).mean()


def assert_all_differ(directions):
    """Each step has random directions of its own: none was asked along before."""
    for number, later in enumerate(directions):
        for earlier in directions[:number]:
            assert (later - earlier).abs().max() > 0.1


def slope(value, module):
    """Return the gradient in all parameters, as one vector; zero where there is none."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return parameters_to_vector(found).detach()


def descend(module, *losses):
    """Subtract the gradients of the losses, one by one, and return the weights."""
    for loss in losses:
        moved = weights(module) - slope(loss(), module)
        torch.nn.utils.vector_to_parameters(moved, module.parameters())
    return weights(module)


def assert_is(found, expected, tolerance=1e-10):
    """Assert equality of two gradients, of which the expected one is none of zeros."""
    assert expected.norm() > 1e-6, "the reference says nothing"
    assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def refuses(module, batches, callback, text, error=ValueError, **flags):
    """Fitting raises before any weight has moved."""
    before = weights(module)
    with pytest.raises(error, match=text):
        fit(module, batches, callback, **flags)
    assert_close(weights(module), before, rtol=0, atol=0)


class _Keeps(logging.Handler):
    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@contextmanager
def lines_for_the_user():
    """Give the list that grows by each line, whatever was done to Lightning's loggers before."""
    logger, keeps = rank_zero.log, _Keeps()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(keeps)
    try:
        yield keeps.lines
    finally:
        logger.removeHandler(keeps)
        logger.setLevel(level)


def said(action):
    """Return every warning and every line for the user, in order of the kinds."""
    with warnings.catch_warnings(record=True) as caught, lines_for_the_user() as lines:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught] + lines
