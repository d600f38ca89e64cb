"""A step looks at no number of the device: where a look makes the host wait, it comes a step later.

The processor stands in for such a device: :func:`lightning_sobolev.loss.checks.is_free` is told to
say no, and whoever looks at a number within a step is refused.
"""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.loss import checks
from tests.plugin._loops import by_hand, taught
from tests.plugin._students import Regressor, mlp
from tests.plugin._trainers import fit, points

_LOOKS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.nonzero)


class NobodyLooks(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in _LOOKS:
            raise AssertionError(f"{func} makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class Guard(L.Callback):
    """Refuses looks from the second batch on: the first is examined, and registers its logs."""

    def __init__(self):
        self.mode, self.guarded = None, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx > 0:
            self.mode = NobodyLooks()
            self.mode.__enter__()

    def on_train_batch_end(self, *args):
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            self.mode, self.guarded = None, self.guarded + 1

    def on_exception(self, *args):
        if self.mode is not None:
            self.mode.__exit__(None, None, None)


@pytest.fixture
def far_away(monkeypatch):
    monkeypatch.setattr(checks, "is_free", lambda _: False)


TERMS = {
    "rows": SobolevTerm(),
    "columns": SobolevTerm(side="tangent"),
    "order 2": SobolevTerm(order=2),
    "values": SobolevTerm(order=0),
    "a fraction": SobolevTerm(rows=0.5),
    "raw": SobolevTerm(normalize="none"),
}


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.usefixtures("far_away")
def test_no_step_looks_at_a_number(kind, engine):
    guard = Guard()
    taught(Regressor(), TERMS[kind], None, guard, engine=engine)
    assert guard.guarded == 2


@pytest.mark.parametrize("kind", ["rows", "order 2", "a fraction", "raw"])
@pytest.mark.usefixtures("far_away")
def test_the_training_is_that_of_the_loop_written_by_hand(kind):
    assert_close(taught(Regressor(), TERMS[kind]), by_hand(None, TERMS[kind]))


class BreaksAt(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.body, self.calls, self.call = mlp(seed=7), 0, call

    def forward(self, x):
        self.calls += 1
        return self.body(x) * (torch.inf if self.calls > self.call else 1.0)


class Steps(L.Callback):
    made = 0

    def on_train_batch_end(self, *args):
        self.made += 1


@pytest.mark.parametrize("broken", [1, 2])
@pytest.mark.usefixtures("far_away")
def test_an_answer_that_is_no_number_is_refused_a_step_later(broken):
    steps = Steps()
    callback = SobolevCallback(BreaksAt(broken), doctor=False)
    with pytest.raises(ValueError, match="answer for term 'order_1' must be finite"):
        fit(Regressor(), points(), callback, steps)
    assert steps.made == broken + 1  # the last one, too: it is looked at when training ends


@pytest.mark.usefixtures("far_away")
def test_a_term_that_is_no_number_is_refused_a_step_later():
    class Breaks(Regressor):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return super().training_step((x * (1e300 if batch_idx == 1 else 1.0), y), batch_idx)

    net = nn.Sequential(nn.Linear(3, 2), nn.Softplus(1.0)).double()
    net[0].weight.data.mul_(1e300)
    callback = SobolevCallback(mlp(seed=7), SobolevSpec(terms=[SobolevTerm()]), doctor=False)
    with pytest.raises(FloatingPointError, match="term 'order_1' must be finite"):
        fit(Regressor(net), points(), callback)
