"""Copies made while the plugin watches are ordinary modules, whatever decorates their methods."""

import copy
import functools
import io
import pickle

import lightning.pytorch as L
import pytest
import torch
from torch.testing import assert_close

from tests.kinds._measure import (
    FUNC,
    Spy,
    Step,
    Way,
    assert_taught,
    batch,
    in_turn,
    moved,
    sobolev,
)
from tests.kinds._state import state
from tests.plugin._trainers import fit_one_step


def decorated(method):
    @functools.wraps(method)
    def wrapped(self, *args, **kwargs):
        return method(self, *args, **kwargs)

    return wrapped


class Net(torch.nn.Sequential):
    @staticmethod
    def made(kind):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            parts = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
            return kind(*parts).double()


class Once(Net):
    @decorated
    def forward(self, x):
        return super().forward(x)


class Twice(Net):
    @decorated
    @decorated
    def forward(self, x):
        return super().forward(x)


class ByContext(Net):
    @torch.enable_grad()
    def forward(self, x):
        return super().forward(x)


class Plain(Step):
    kind = Net

    def __init__(self):
        super().__init__(Net.made(self.kind))


class Wrapped(Plain):
    kind = Once

    @decorated
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class WrappedTwice(Plain):
    kind = Twice

    @decorated
    @decorated
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class InContext(Plain):
    kind = ByContext

    @torch.enable_grad()
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


class Manually(Wrapped):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    @decorated
    def manual_backward(self, loss, *args, **kwargs):
        super().manual_backward(loss, *args, **kwargs)

    @decorated
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def by_pickle(module):
    return pickle.loads(pickle.dumps(module))


def by_torch(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


MAKES = [Plain, Wrapped, WrappedTwice, InContext, Manually]
COPIERS = [copy.deepcopy, by_pickle, by_torch]
WAYS = {
    "tape": Way(),
    "func": Way(options=FUNC),
    "rows": Way(rows=0.5),
}
makes = pytest.mark.parametrize("make", MAKES)
copiers = pytest.mark.parametrize("copier", COPIERS)
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@makes
@ways
def test_a_decorated_step_learns_the_term(make, way):
    assert_taught(make, way)


class Copies(L.Callback):
    """Copies at each of Lightning's moments behind the call."""

    def __init__(self, copier):
        self.copier, self.made = copier, {}

    def on_before_backward(self, trainer, pl_module, loss):
        self.keep("backward", pl_module.net)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.keep("optimizer", pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.keep("batch", pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep("epoch", pl_module)

    def keep(self, moment, module):
        self.made[moment] = self.copier(module)


@makes
@pytest.mark.parametrize(
    ("copier", "moment"),
    [
        (copy.deepcopy, "optimizer"),
        (copy.deepcopy, "epoch"),
        (by_pickle, "batch"),
        (by_torch, "optimizer"),
    ],
)
def test_a_copy_trains_as_a_module_that_was_never_watched(make, copier, moment):
    copies = Copies(copier)
    fit_one_step(make(), batch(), sobolev(Way(), Spy()), copies)
    twin, plain = copies.made[moment], make()
    plain.load_state_dict(twin.state_dict())
    assert_close(moved(lambda: twin, batch), moved(lambda: plain, batch), rtol=0, atol=0)


class CopiesInside:
    """Copies its net between the call and the backward: a target that is made lazily."""

    copier = copy.deepcopy

    def call(self, x):
        y = self.net(x)
        twin = type(self).copier(self.net)
        assert_close(twin(x), y, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        return y + 0.1 * twin(x).detach()


@pytest.mark.parametrize("parent", [Plain, Wrapped, WrappedTwice, InContext])
@pytest.mark.parametrize(("copier", "name"), in_turn(COPIERS, WAYS, each=2))
def test_a_copy_made_inside_a_step_has_no_link_to_the_original(parent, copier, name):
    made = type("Made", (CopiesInside, parent), {"copier": staticmethod(copier)})
    assert_taught(made, WAYS[name])


@copiers
def test_a_copy_holds_nothing_of_the_package(copier):
    module = Wrapped()
    copies = Copies(lambda watched: pickle.dumps(copier(watched)))
    fit_one_step(module, batch(), sobolev(Way(), Spy()), copies)
    for moment, pickled in copies.made.items():
        assert b"lightning_sobolev" not in pickled, moment


@makes
def test_a_decorated_module_is_restored(make):
    module = make()
    before = state(module)
    fit_one_step(module, batch(), sobolev(Way(), Spy()))
    assert state(module) == before
    assert "forward" not in vars(module.net)
    assert "training_step" not in vars(module)
