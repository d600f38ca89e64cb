"""Nothing piles up while training runs, and a crash leaves no graph behind."""

import gc
import weakref
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.doctor.cost import PeakMemory
from lightning_sobolev.loss import checks
from lightning_sobolev.plugin import step
from tests.plugin._students import Breaks, ManualRegressor, Regressor, mlp
from tests.plugin._trainers import fit, points

SPEC = SobolevSpec(
    terms=[SobolevTerm(), SobolevTerm(order=2, weight=0.01), SobolevTerm(rows=0.5, name="part")]
)
PAGE_KB = 4


@pytest.fixture(autouse=True)
def _only_what_is_new():
    """Spare the collector what was there before: it looks at everything, several times a test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def live_tensors(where=lambda _: True):
    gc.collect()
    # The type and not isinstance: some objects answer for others, with a warning.
    return sum(issubclass(type(one), torch.Tensor) and where(one) for one in gc.get_objects())


class Counts(L.Callback):
    def __init__(self, every):
        self.every, self.tensors, self.resident = every, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx % self.every == 0:
            self.tensors.append(live_tensors())
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(PAGE_KB * pages)


@pytest.mark.parametrize("module", [Regressor, ManualRegressor])
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_no_tensor_outlives_its_step(engine, module):
    counts = Counts(every=3)
    # The first points are kept until foresight has spoken.
    used = SobolevCallback(mlp(seed=7), SPEC, engine=engine, on_mislead="off")
    fit(module(lr=0.001), points(8 * 8), used, counts)
    assert len(set(counts.tensors[1:])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_memory_does_not_grow_in_500_steps(engine):
    counts = Counts(every=50)
    fit(
        Regressor(lr=0.001),
        points(8 * 500),
        SobolevCallback(mlp(seed=7), SPEC, engine=engine, on_mislead="off"),
        counts,
    )
    assert len(set(counts.tensors[1:])) == 1
    assert max(counts.resident[2:]) - counts.resident[2] < 1000


class Peaks(L.Callback):
    """The most bytes of new tensors that are alive at once, step by step."""

    def __init__(self):
        self.bytes = []

    def on_train_batch_start(self, *args):
        self.counter = PeakMemory()
        self.counter.__enter__()

    def on_train_batch_end(self, *args):
        self.counter.__exit__(None, None, None)
        self.bytes.append(self.counter.peak)


class ByHand(Regressor):
    def __init__(self, net, teacher):
        super().__init__(net, lr=0.001)
        self.teacher = [teacher]  # no submodule

    def training_step(self, batch, batch_idx):
        x, target = batch[0].detach().requires_grad_(), batch[1]
        u = torch.ones_like(target)
        (theirs,) = torch.autograd.grad(self.teacher[0](x), x, u)
        y = self.net(x)
        (ours,) = torch.autograd.grad(y, x, u, create_graph=True)
        return (y - target).square().mean() + (ours - theirs).square().sum(1).mean()


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_step_needs_no_more_memory_than_one_by_hand_and_two_copies_of_its_input(
    engine, waits, monkeypatch
):
    if waits:
        monkeypatch.setattr(checks, "is_free", lambda _: False)
    monkeypatch.setattr(step, "LARGE", 0)
    wide = {"dim": 64, "width": 4}  # an input is most of what there is
    data, found = points(8 * 4, dim=64), {}
    for name in ("by hand", "callback"):
        net, teacher, peaks = mlp(**wide), mlp(seed=7, **wide), Peaks()
        term = SobolevTerm(normalize="none")
        spec = SobolevSpec(terms=[term])
        matching = SobolevCallback(teacher, spec, engine=engine, on_mislead="off")
        module = ByHand(net, teacher) if name == "by hand" else Regressor(net, lr=0.001)
        fit(module, data, *([] if name == "by hand" else [matching]), peaks)
        found[name] = peaks.bytes[-1]
    copy = 8 * 64 * 8
    assert found["callback"] - found["by hand"] < 2.5 * copy


class BreaksLater(Breaks):
    def training_step(self, batch, batch_idx):
        return Regressor.training_step(self, batch, batch_idx)

    def on_before_backward(self, loss):
        if self.trainer.global_step == self.number:
            raise KeyError("a fault behind the step")


@pytest.mark.usefixtures("doctor")
@pytest.mark.parametrize(("step", "number"), [(Breaks, 0), (BreaksLater, 2)])
@pytest.mark.parametrize("engine", ["tape", "func"])
def test_a_crash_leaves_no_graph(engine, step, number):
    before = live_tensors(lambda tensor: tensor.grad_fn is not None)
    module, used = step(number), SobolevCallback(mlp(seed=7), SPEC, engine=engine)
    with pytest.raises(KeyError, match="a fault"):
        fit(module, points(), used)
    assert live_tensors(lambda tensor: tensor.grad_fn is not None) == before
    assert used._doctor.kept is None


# Which graphs are alive when


class Sentinel:
    """Lives as long as the node of the graph that holds it."""


class Marked(torch.autograd.Function):
    """The identity; says when it is differentiated, and puts something into its node."""

    @staticmethod
    def forward(ctx, x, differentiated):
        ctx.differentiated, ctx.sentinel = differentiated, Sentinel()
        differentiated.nodes.append(weakref.ref(ctx.sentinel))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.differentiated()
        return gradient, None


class Mark:
    """Remembers the nodes of one network, and which nodes of another were alive at its backward."""

    def __init__(self, other=None):
        self.nodes, self.other, self.alive = [], other, []

    def __call__(self):
        if self.other is not None:
            self.alive.append(sum(node() is not None for node in self.other.nodes))


class Net(nn.Module):
    def __init__(self, mark, seed):
        super().__init__()
        self.body, self.mark = mlp(3, 2, seed=seed), mark

    def forward(self, x):
        return self.body(Marked.apply(x, self.mark))


def test_the_graph_of_the_teacher_is_gone_when_the_student_is_differentiated():
    asked = Mark()
    differentiated = Mark(asked)
    terms = [SobolevTerm(), SobolevTerm(num_projections=3, name="more")]
    used = SobolevCallback(Net(asked, 7), SobolevSpec(terms=terms), engine="tape", doctor=False)
    fit(Regressor(Net(differentiated, 1)), points(size=8), used)
    assert len(asked.nodes) == 1  # one forward of the teacher for both terms
    # one pull of the first term, three of the second, and the outer backward pass
    assert differentiated.alive[:4] == [0, 0, 0, 0]
