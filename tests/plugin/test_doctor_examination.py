"""The doctor: it finds what is wrong, raises no false alarm, and says what the terms cost."""

import logging
import re
import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import Linear, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.doctor.cost import PeakMemory
from tests.plugin._ordinary import ORDINARY, Last
from tests.plugin._students import ManualRegressor, Regressor, Remembers, mlp
from tests.plugin._trainers import as_loader, fit, points, weights

pytestmark = pytest.mark.usefixtures("doctor")

VJP, JVP, CURVED = SobolevTerm(), SobolevTerm(side="tangent"), SobolevTerm(order=2)


def fits(net, shape=(4, 3), term=VJP, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(shape, dtype=torch.float64)
        net = net.double()
        teacher = mlp(dim=x[0].numel(), outputs=net(x)[0].numel(), seed=7)
        flat = nn.Sequential(nn.Flatten(), teacher, nn.Unflatten(1, net(x).shape[1:]))
        module = Regressor(net)
        spec = SobolevSpec(terms=[term])
        fit(module, as_loader([(x, net(x).detach())]), SobolevCallback(flat, spec, **options))
    return module


CURVES = ("dropout", "layer norm", "spectral norm", "gru", "u-net", "fourier layer")
TRIALS = {name: (name, JVP) for name in ORDINARY} | {f"{n}, order 2": (n, CURVED) for n in CURVES}


@pytest.mark.parametrize(("name", "term"), TRIALS.values(), ids=TRIALS)
def test_ordinary_students_pass(name, term, caplog):
    make, shape = ORDINARY[name]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fits(make(), shape, term)
    assert "agrees with finite differences to" in caplog.text


class Detaches(nn.Module):
    """Loses half of its double backward."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 2.0 * x.detach() * gradient

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x):
        return self.Square.apply(self.body(x))


def test_a_wrong_double_backward_is_found_before_the_first_update():
    module = Regressor(Detaches())
    before = weights(module)
    with pytest.raises(ValueError, match=r"has a wrong double backward .* doctor=False trains"):
        fit(module, points(), SobolevCallback(mlp(seed=7)))
    assert_close(weights(module), before, rtol=0, atol=0)
    fit(module, points(), SobolevCallback(mlp(seed=7), doctor=False))
    assert (weights(module) - before).norm() > 0.0


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) * (1.0 + self.calls)


class Locked(nn.Module):
    """Holds what cannot be copied."""

    def __init__(self, dim=3, outputs=2):
        super().__init__()
        self.body = mlp(dim, outputs)
        self.lock = threading.Lock()

    def forward(self, x):
        return self.body(x)


class OwnPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp().float()

    def forward(self, x):
        self.body.float()
        return self.body(x.float())


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Counts, "the student is not deterministic"),
        (Locked, "a copy in float64 does not run: cannot pickle '_thread.lock'"),
    ],
)
def test_a_student_that_cannot_be_examined_is_said_to_be(net, text):
    with pytest.warns(UserWarning, match=f"Sobolev doctor: not checked: {text}"):
        fit(Regressor(net()), points(), SobolevCallback(mlp(seed=7)), limit_train_batches=1)


def test_what_a_student_has_computed_last_is_copied_without_its_graph():
    module, callback = Regressor(Remembers(mlp())), SobolevCallback(mlp(seed=7))
    fit(module, points(), callback, limit_train_batches=1)
    assert callback.cost is not None
    assert module.net.last.grad_fn is not None


def test_a_student_that_computes_in_float32_is_examined_with_coarser_steps(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(Regressor(OwnPrecision()), points(), SobolevCallback(mlp(seed=7)))
    assert "agrees with finite differences to" in caplog.text


def test_what_was_chosen_and_found_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fits(Last(nn.GRU(3, 4, batch_first=True)), (3, 4, 3))
    said = "\n".join(record.message for record in caplog.records)
    assert "engine='tape', which reuses the step's own forward" in said
    assert "net.rnn (GRU): cuDNN is off" in said
    assert "agrees with finite differences to" in said


def test_the_generators_of_other_devices_are_left_alone(monkeypatch):
    module, callback, seeded = Regressor(), SobolevCallback(mlp(seed=7)), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fit(module, points(), callback)
    assert callback.cost is not None
    assert not seeded


# What the chosen terms cost on the user's own student


def cost_of(term, student=None, **options):
    data = points(size=64, dim=20, outputs=6, batch_size=64)
    used = SobolevCallback(mlp(20, 6, 64, seed=7), SobolevSpec(terms=[term]), **options)
    fit(Regressor(mlp(20, 6, 64)) if student is None else student, data, used)
    return used.cost


def test_peak_memory_is_that_of_the_tensors_alive_at_once():
    with PeakMemory() as memory:
        first = torch.ones(1000)
        view = first[10:].reshape(2, -1)  # no memory of its own
        second = first + 1.0
        del first
        third = second + 1.0  # the view keeps the first alive
        del second, third, view
        torch.ones(500)
    assert memory.peak == 3 * 4000
    assert memory.current == 0


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_more_projections_cost_more_of_both(engine):
    one, many = (cost_of(SobolevTerm(num_projections=n), engine=engine) for n in (1, 12))
    assert one.plain_bytes == many.plain_bytes
    assert one.plain_bytes < one.matched_bytes < many.matched_bytes
    assert many.matched_seconds > one.matched_seconds > one.plain_seconds


def test_a_schedule_that_begins_at_zero_is_not_free():
    ramp = SobolevTerm(weight=Linear(0.0, 1.0, steps=100))
    assert cost_of(ramp).matched_bytes == cost_of(SobolevTerm()).matched_bytes


@pytest.mark.parametrize("step", [Regressor, ManualRegressor])
def test_measuring_leaves_everything_as_it_was(step):
    found = []
    for doctor in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(mlp(20, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).double(), mlp(8, 6))
        module = step(net)
        cost = cost_of(SobolevTerm(), module, doctor=doctor)
        assert (cost is not None) == doctor
        found.append((weights(module), module.net[2].running_var, torch.rand(1)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_was_measured_is_said_and_so_is_what_was_not(caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        cost_of(SobolevTerm())
        student = Regressor(Locked(20, 6))
        with pytest.warns(UserWarning, match="not checked: a copy in float64 does not run"):
            assert cost_of(SobolevTerm(), student) is None
    text = r"with the terms the student takes \d+\.\d times the time \(.* ms instead of .*\) and "
    assert re.search(text, caplog.text)
    assert "the cost was not measured: cannot pickle '_thread.lock'" in caplog.text
