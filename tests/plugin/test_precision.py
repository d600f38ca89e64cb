"""The gradient of the terms in every precision, against float64."""

import copy

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.testing import assert_close

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from tests.plugin._students import ManualRegressor, Silent, mlp
from tests.plugin._trainers import as_loader, fit, points

EVERY = {"projection": "basis", "num_projections": None}
TERMS = {
    "vjp": SobolevTerm(**EVERY),
    "jvp": SobolevTerm(**EVERY, side="tangent"),
    "order 2": SobolevTerm(**EVERY, order=2),
    "vjp, half the rows": SobolevTerm(**EVERY, rows=0.5),
}
NET, TEACHER = mlp(outputs=4, width=16), mlp(outputs=4, seed=7)
QUICK = [("tape", "vjp"), ("tape", "order 2"), ("func", "jvp")]
(BATCH,) = points(size=8, outputs=4)
MIXED = ["32-true", "bf16-mixed", "16-mixed"]
# Every run of the tests tries those; the others are slow.
WAYS = [
    pytest.param(engine, kind, marks=() if (engine, kind) in QUICK else pytest.mark.slow)
    for engine in ("tape", "func")
    for kind in TERMS
]
HALF = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


class Gradient(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.flat = torch.cat([p.grad.double().reshape(-1) for p in pl_module.parameters()])


def trainer_options(precision):
    if precision != "16-mixed":
        return {"precision": precision}
    # As on a GPU; on a CPU the trainer itself would make bf16-mixed of the word.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    return {"precision": None, "plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


def gradient(student, teacher, term, trained_in, on="log_softmax", **options):
    dtype = torch.float64 if trained_in == "64-true" else torch.float32
    module, teacher, kept = *(copy.deepcopy(m).to(dtype) for m in (student, teacher)), Gradient()
    used = SobolevCallback(teacher, SobolevSpec(terms=[term], on=on), doctor=False, **options)
    loader = as_loader([[part.to(dtype) for part in BATCH]])
    fit(module, loader, used, kept, **trainer_options(trained_in))
    return kept.flat


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("engine", "kind"), WAYS)
@pytest.mark.parametrize("precision", MIXED)
def test_derivatives_of_a_mixed_step_have_the_digits_of_float32(precision, engine, kind, deviation):
    expected = gradient(Silent(NET), TEACHER, TERMS[kind], "64-true")
    found = gradient(Silent(NET), TEACHER, TERMS[kind], precision, engine=engine)
    row = ("precisions", precision, "float32", engine)
    assert deviation(*row, found=found, expected=expected) < 1e-6


@pytest.fixture
def exact_in_half(request, monkeypatch):
    """Weights and inputs that half precision can hold: what is left is what the step loses."""
    dtype = HALF[request.getfixturevalue("precision")]
    monkeypatch.setattr(f"{__name__}.BATCH", [part.to(dtype).double() for part in BATCH])
    return Silent(copy.deepcopy(NET).to(dtype).double())


@pytest.mark.parametrize(("engine", "kind"), WAYS)
@pytest.mark.parametrize("precision", HALF)
def test_derivatives_of_a_half_step_lose_one_rounding(
    precision, engine, kind, exact_in_half, deviation
):
    """The parameters are half, and so is their gradient; nothing before it is."""
    expected = gradient(exact_in_half, TEACHER, TERMS[kind], "64-true")
    found = gradient(exact_in_half, TEACHER, TERMS[kind], precision, engine=engine)
    row = ("precisions", precision, "float32", engine)
    once = expected.to(HALF[precision]).double()
    assert deviation(*row, found=found, expected=expected) < 1.5 * distance(once, expected)


@pytest.mark.parametrize("kind", ["vjp", "jvp", "order 2"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "16-true"])
def test_the_steps_own_derivatives_have_the_steps_digits(precision, kind, deviation):
    expected = gradient(Silent(NET), TEACHER, TERMS[kind], "64-true")
    found = gradient(Silent(NET), TEACHER, TERMS[kind], precision, inner_precision="step")
    row = ("precisions", precision, "the step's", "tape")
    error = deviation(*row, found=found, expected=expected)
    assert 1e-4 < error < (0.04 if "bf16" in precision else 0.01)


@pytest.mark.parametrize("kind", ["vjp", "jvp", "order 2"])
def test_near_the_target_half_precision_would_train_on_noise(kind):
    near = copy.deepcopy(TEACHER).train().requires_grad_(True)  # whoever was taught by it before
    with torch.no_grad():
        near[0].weight.mul_(1.001)
    near = Silent(near)
    expected = gradient(near, TEACHER, TERMS[kind], "64-true")
    assert distance(gradient(near, TEACHER, TERMS[kind], "bf16-mixed"), expected) < 1e-3
    noise = gradient(near, TEACHER, TERMS[kind], "bf16-mixed", inner_precision="step")
    assert distance(noise, expected) > 0.5


def test_fp16_does_not_underflow():
    """Rows of 1e-8 are below the smallest number of float16."""
    small = [copy.deepcopy(net) for net in (NET, TEACHER)]
    for net in small:
        net[2].weight.data.mul_(1e-8)
    student, teacher = Silent(small[0]), small[1]
    for kind in ("vjp", "jvp", "order 2"):
        expected = gradient(student, teacher, TERMS[kind], "64-true", "identity")
        found = gradient(student, teacher, TERMS[kind], "16-mixed", "identity")
        assert distance(found, expected) < 1e-6
    options = {"on": "identity", "inner_precision": "step"}
    lost = gradient(student, teacher, TERMS["vjp"], "16-mixed", **options)
    assert not distance(lost, gradient(student, teacher, TERMS["vjp"], "64-true")) < 0.1


class ManualSilent(ManualRegressor, Silent):
    """Under manual optimization, without a loss of its own."""


def test_the_term_is_scaled_with_the_loss_under_manual_optimization():
    """A term added behind the gradient scaler would be thousands of times too small."""
    expected = gradient(Silent(NET), TEACHER, TERMS["vjp"], "64-true")
    found = gradient(ManualSilent(NET), TEACHER, TERMS["vjp"], "16-mixed")
    assert distance(found, expected) < 1e-3  # this backward pass is made under autocast


class Autocast(Silent):
    def output(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(batch[0])


@pytest.mark.parametrize("engine", ["tape", "func"])
def test_autocast_of_the_users_own(engine):
    expected = gradient(Silent(NET), TEACHER, TERMS["vjp"], "64-true")
    found = gradient(Autocast(NET), TEACHER, TERMS["vjp"], "32-true", engine=engine)
    assert distance(found, expected) < 1e-6


@pytest.mark.parametrize(("engine", "precision"), [("func", "float32"), ("tape", "step")])
def test_the_output_map_sees_single_precision(engine, precision):
    seen = []

    def on(y):
        seen.append(y.dtype)
        return torch.log_softmax(y, -1)

    term, options = TERMS["vjp"], {"engine": engine, "inner_precision": precision}
    gradient(Silent(NET), TEACHER, term, "bf16-mixed", on=on, **options)
    assert set(seen) == {torch.float32}


class Behind(Silent):
    """The observed part gets what an autocast layer made: half precision with a history."""

    def __init__(self):
        super().__init__(mlp(dim=4, outputs=4))
        self.first = mlp(outputs=4, seed=5)

    def output(self, batch):
        return self.net(self.first(batch[0]))


def test_an_input_in_half_precision_with_a_history():
    term, teacher = TERMS["vjp, half the rows"], mlp(dim=4, outputs=4, seed=7)
    expected = gradient(Behind(), teacher, term, "64-true", module="net")
    found = gradient(Behind(), teacher, term, "bf16-mixed", module="net")
    assert distance(found, expected) < 1e-2  # the input itself is rounded


class Recurrent(nn.Module):
    """Keeps a second list of its weights, and buffers beside."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.lstm(x[:, None])[0][:, 0])


@pytest.mark.parametrize("precision", HALF)
def test_parameters_and_buffers_stay_half(precision):
    module = Silent(Recurrent().double())
    expected = gradient(module, TEACHER, TERMS["vjp"], "64-true")
    assert distance(gradient(module, TEACHER, TERMS["vjp"], precision), expected) < 0.05
    taught, plain = copy.deepcopy(module), copy.deepcopy(module)
    loader = as_loader([[part.to(HALF[precision]) for part in BATCH]])
    fit(taught, loader, SobolevCallback(TEACHER, doctor=False), precision=precision)
    fit(plain, loader, precision=precision)
    assert {p.dtype for p in (*taught.parameters(), taught.net.norm.running_mean)} == {
        HALF[precision]
    }
    assert_close(dict(taught.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


def test_what_half_precision_means_is_said(caplog):
    module, term = Silent(nn.Sequential(NET, nn.Dropout(0.1))), TERMS["vjp"]
    with caplog.at_level("INFO"):
        gradient(module, TEACHER, term, "bf16-mixed", module="net")
    assert "in a replay in float32; inner_precision='step' takes" in caplog.text
    assert "draws its own mask" not in caplog.text  # a replay of all rows draws the step's
    caplog.clear()
    with caplog.at_level("INFO"):
        gradient(module, TEACHER, term, "bf16-mixed", module="net", inner_precision="step")
        gradient(module, TEACHER, term, "64-true", module="net")
    assert "replay" not in caplog.text
