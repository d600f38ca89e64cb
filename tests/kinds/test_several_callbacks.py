"""Several callbacks teach one module, and may leave it in any order."""

import itertools

import lightning.pytorch as L
import pytest
from torch.nn.functional import mse_loss

from tests.kinds import _manual as steps
from tests.kinds import _reference as reference
from tests.kinds._measure import Spy, Step, Way, assert_updates, batch, other, sobolev, target
from tests.kinds._state import state
from tests.plugin._trainers import as_loader, fit


class Plain(Step):
    def forward(self, x):
        return self.net(x)

    def call(self, x):
        return self(x)


def several(count=3):
    spies = [Spy(function) for function in (target, other, target)[:count]]
    names, watched = ("a", "b", "c"), ("net", "net", None)
    used = [
        sobolev(Way(), spy, name=name, module=module)
        for spy, name, module in zip(spies, names, watched, strict=False)
    ]
    return spies, used


class Leaves(L.Callback):
    """Takes callbacks out, one behind each batch; itself the last of the list it changes."""

    def __init__(self, callbacks):
        self.callbacks = list(callbacks)

    def on_train_batch_end(self, trainer, pl_module, *args):
        if self.callbacks:
            leaving = self.callbacks.pop(0)
            leaving.teardown(trainer, pl_module, "fit")
            trainer.callbacks.remove(leaving)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_callbacks_may_leave_in_any_order(order):
    spies, used = several()
    module = Plain()
    before = state(module)
    batches = [batch(), batch(size=5), batch(size=4), batch(size=3)]
    fit(module, as_loader(batches), *used, Leaves(used[number] for number in order))
    assert state(module) == before
    # Asked behind the first batch, and once for each other one that it stayed.
    asked = [len(spies[number].asked) for number in order]
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("make", [Plain, steps.Manual])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_one_that_stays_goes_on(order, make):
    """Of two, one leaves behind the first batch; the second update has the other's term alone."""
    spies, used = several(2)
    module, path = make(), []

    class Keeps(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            path.append({n: p.detach().clone() for n, p in pl_module.named_parameters()})

    leaves = Leaves([used[order[0]]])
    fit(module, as_loader([batch(), batch()]), *used, Keeps(), leaves)
    alone = make()
    alone.load_state_dict(path[0])
    x, y = batch()
    value = reference.term("vjp", alone.net, spies[order[1]].function, x)
    expected = reference.gradient(mse_loss(alone.net(x), y) + value, alone)
    assert_updates({n: path[0][n] - path[1][n] for n in path[0]}, expected, 1e-7)
