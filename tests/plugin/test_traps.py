"""Every known trap, one row each: what happens without its remedy, and that the remedy is found.

Without the remedy a trap must be loud: torch's own error, or the doctor's finite differences where
torch says nothing. With it, the doctor agrees with finite differences and says what it did.
"""

import logging
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from lightning_sobolev import AnalyticTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.doctor import layers
from lightning_sobolev.observe import remedies
from tests.plugin._ordinary import Last
from tests.plugin._students import Checkpointed, Silent, mlp
from tests.plugin._trainers import as_loader, fit

pytestmark = pytest.mark.usefixtures("doctor")

DISAGREES = r"must agree with finite differences to 1%, got a deviation of"
VJP, JVP, CURVED = SobolevTerm(), SobolevTerm(side="tangent"), SobolevTerm(order=2)
TERMS = {"cotangent": VJP, "tangent": JVP, "order 2": CURVED}


def teach(net, shape, term, engine="tape", dtype=torch.float64):
    """One step of a student; the doctor looks on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = net.to(dtype), torch.randn(shape, dtype=dtype)
        # moves running statistics once, which no test here looks at
        size = net(x.clone().requires_grad_())[0].shape
        mixing = torch.randn(x[0].numel(), size.numel(), dtype=dtype)
    teacher = AnalyticTeacher(lambda p: (p.flatten(1) @ mixing).sin().reshape(-1, *size))
    used = SobolevCallback(teacher, SobolevSpec(terms=[term]), engine=engine)
    precision = "64-true" if dtype == torch.float64 else "32-true"
    fit(Silent(net, lr=0.01), as_loader([[x]]), used, precision=precision)


def fused_norms(monkeypatch):
    monkeypatch.setattr(remedies, "_WRITTEN_OUT", {})


def fused_attention(monkeypatch):
    for kernel in ("flash", "mem_efficient", "cudnn", "math"):
        monkeypatch.setattr(torch.backends.cuda, f"enable_{kernel}_sdp", lambda _: None)


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, 6), function, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def layer_norm(y):
    return nn.functional.layer_norm(y, (6,))


def normalized_channels(norm):
    return nn.Sequential(nn.Conv1d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(16, 2))


def encoder():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def attends(y):
    heads = y.reshape(len(y), 1, 3, 2)
    return scaled_dot_product_attention(heads, heads, heads).reshape(len(y), 6)


@dataclass
class Trap:
    """A student that steps into it with some terms and engines.

    ``remedy`` takes the remedy away, and ``without`` is raised then; with it the doctor has
    ``said`` something, or None where there is no layer to name.
    """

    net: object
    shape: tuple
    remedy: object
    without: str
    said: str | None
    kinds: tuple = ("tangent", "order 2")
    engines: tuple = ("tape", "func")


WRITTEN_OUT, MATH = "(LayerNorm): written out", "the math attention kernel is used"
SILENT = {
    "LayerNorm": Trap(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)),
        (3, 6), fused_norms, DISAGREES, WRITTEN_OUT),
    "functional layer_norm": Trap(
        lambda: Calls(layer_norm), (3, 6), fused_norms, DISAGREES, None),
    "InstanceNorm": Trap(
        lambda: normalized_channels(nn.InstanceNorm1d(4)), (3, 2, 6), fused_norms, DISAGREES,
        "(InstanceNorm1d): written out"),
    "BatchNorm in train mode": Trap(
        lambda: normalized_channels(nn.BatchNorm1d(4)), (4, 2, 6), fused_norms, DISAGREES,
        "rows are coupled in train mode", engines=("tape",)),
}  # fmt: skip
EVERY = ("cotangent", "tangent")
LOUD = {
    "TransformerEncoderLayer": Trap(
        encoder, (3, 4, 6), fused_attention, "no second derivative|no forward", MATH, EVERY,
        ("tape",)),
    "functional attention": Trap(
        lambda: Calls(attends), (3, 6), fused_attention, "no second derivative|no forward", None,
        EVERY, ("tape",)),
}  # fmt: skip


def rows(traps):
    return [
        pytest.param(trap, kind, engine, id=f"{name}-{kind}-{engine}")
        for name, trap in traps.items()
        for kind in trap.kinds
        for engine in trap.engines
    ]


@pytest.mark.parametrize(("trap", "kind", "engine"), rows(SILENT))
def test_finite_differences_find_a_silent_trap_without_its_remedy(trap, kind, engine, monkeypatch):
    trap.remedy(monkeypatch)
    with pytest.raises(ValueError, match=trap.without):
        teach(trap.net(), trap.shape, TERMS[kind], engine)


@pytest.mark.parametrize(("trap", "kind", "engine"), rows(LOUD))
def test_a_loud_trap_is_explained_without_its_remedy(trap, kind, engine, monkeypatch):
    trap.remedy(monkeypatch)
    with pytest.raises(RuntimeError, match=trap.without):
        teach(trap.net(), trap.shape, TERMS[kind], engine)


@pytest.mark.parametrize(("trap", "kind", "engine"), rows({**SILENT, **LOUD}))
def test_the_doctor_applies_the_remedy_says_so_and_agrees(trap, kind, engine, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        teach(trap.net(), trap.shape, TERMS[kind], engine)
    assert "agrees with finite differences to" in caplog.text
    assert trap.said is None or trap.said in caplog.text


# What cannot be mended is refused by name, and would not have passed in silence


REFUSED = {
    "LSTM in forward mode": (
        lambda: Last(nn.LSTM(3, 4, batch_first=True)), (3, 4, 3), JVP,
        "no forward mode for nn.LSTM; use engine='tape'", "this layer has no forward mode"),
    "BatchNorm in train mode under torch.func": (
        lambda: normalized_channels(nn.BatchNorm1d(4)), (4, 2, 6), VJP,
        "cannot run batch norm in train mode",
        "batch norm in train mode works with engine='tape' only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_cannot_do_is_refused_before_the_step(name, monkeypatch):
    make, shape, term, refused, explained = REFUSED[name]
    with pytest.raises(ValueError, match=refused):
        teach(make(), shape, term, "func")
    teach(make(), shape, term, "tape")
    monkeypatch.setattr(layers, "scan", lambda *_: [])
    with pytest.raises(RuntimeError, match=explained):
        teach(make(), shape, term, "func", dtype=torch.float32)  # oneDNN's LSTM is the trap


@pytest.mark.parametrize(
    ("reentrant", "engine", "text"),
    [
        (True, "tape", "must use use_reentrant=False"),
        (True, "func", "this autograd.Function works with engine='tape' only"),
        (False, "func", "activation checkpointing works with engine='tape' only"),
    ],
)
def test_activation_checkpointing_names_the_remedy(reentrant, engine, text):
    with pytest.raises(RuntimeError, match=text):
        teach(Checkpointed(mlp(6, 2), reentrant), (3, 6), VJP, engine)
    teach(Checkpointed(mlp(6, 2), reentrant=False), (3, 6), VJP, "tape")


# Traps that no finite difference sees: the gradient is right, what it is of is not what was meant


@pytest.mark.filterwarnings("ignore:Sobolev doctor. not checked. the derivative does not depend")
@pytest.mark.parametrize("activation", [nn.ReLU, nn.PReLU])
def test_a_second_derivative_that_is_nowhere_warns(activation):
    with pytest.warns(UserWarning, match="second derivative is exactly zero.*Use a smooth"):
        teach(mlp(6, 2, activation=activation), (3, 6), CURVED)


def test_dropout_in_a_second_forward_is_named(caplog):
    net = nn.Sequential(mlp(6, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        teach(net, (4, 6), SobolevTerm(rows=0.5))
    assert "(Dropout): the replay on some rows draws its own mask" in caplog.text


class Centered(nn.Module):
    """Couples rows as batch norm does, and no layer's name betrays it."""

    def __init__(self):
        super().__init__()
        self.body = mlp(6, 2)

    def forward(self, x):
        return self.body(x - x.mean(0))


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_rows_that_see_each_other_are_found_whatever_couples_them(engine):
    with pytest.warns(UserWarning, match="rows of the student are coupled"):
        teach(Centered(), (4, 6), VJP, engine)


class Straight(nn.Module):
    """A straight-through estimator: forward a sign, backward the identity."""

    def __init__(self):
        super().__init__()
        self.first, self.last = mlp(6, 4), mlp(4, 2)

    def forward(self, x):
        hidden = self.first(x)
        return self.last(hidden + (hidden.sign() - hidden).detach())


def test_gradients_that_are_stopped_on_purpose_raise_no_alarm():
    with pytest.warns(UserWarning, match="finite differences say nothing here"):
        teach(Straight(), (4, 6), VJP)
