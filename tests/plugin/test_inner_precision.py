"""Derivatives in bfloat16: what is evaluated in it, what is not, and how far off it is."""

import copy

import pytest
import torch
from torch import nn

from lightning_sobolev import SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.functional.projections import draw
from tests.plugin._students import Regressor, Silent
from tests.plugin._trainers import fit_one_step

LOW = "bf16-mixed"
SINGLE = {"precision": "32-true"}
HALF_ROWS = {"rows": 0.5}


def convolutions(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(2, 16, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Tanh(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 3))


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 2, 14, 14, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.zeros(16, 3, dtype=dtype)


class Types:
    def __init__(self, layer):
        self.seen = []
        layer.register_forward_hook(lambda _, __, y: self.seen.append(y.dtype))


def callback(teacher, precision=LOW, engine="tape", **term):
    spec = SobolevSpec(terms=[SobolevTerm(num_projections=2, **term)], on="log_softmax")
    return SobolevCallback(teacher, spec, engine=engine, inner_precision=precision, doctor=False)


def gradient(dtype, precision, engine="tape", **term):
    """What one step of SGD with rate one subtracted because of the term alone."""
    module = Silent(convolutions().to(dtype))
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    taught = callback(convolutions(7).to(dtype), precision, engine, **term)
    trainer = {"precision": "64-true"} if dtype == torch.float64 else SINGLE
    fit_one_step(module, batch(dtype), taught, **trainer)
    return (before - nn.utils.parameters_to_vector(module.parameters()).detach()).double()


@pytest.mark.parametrize("engine", ["tape", "func"])
@pytest.mark.parametrize("term", [{}, HALF_ROWS, {"side": "tangent"}], ids=str)
def test_the_gradient_is_that_of_float64_to_the_digits_of_bfloat16(term, engine, monkeypatch):
    # Directions are drawn in float32 for either: a draw depends on its type.
    monkeypatch.setattr("lightning_sobolev.loss.draws.draw", drawn_in_single)
    exact = gradient(torch.float64, "float32", engine, **term)
    errors = [
        float((gradient(torch.float32, precision, engine, **term) - exact).norm() / exact.norm())
        for precision in ("float32", LOW)
    ]
    assert errors[0] < 1e-5
    assert 1e-4 < errors[1] < 5e-2  # eight bits: 0.4 % an operation


def drawn_in_single(*args, dtype, **kwargs):
    return draw(*args, dtype=torch.float32, **kwargs).to(dtype)


@pytest.mark.parametrize(
    ("inner", "term", "step", "seen"),
    [
        (LOW, {}, "32-true", [torch.float32, torch.bfloat16]),
        (LOW, {}, LOW, [torch.bfloat16]),
        ("float32", HALF_ROWS, LOW, [torch.bfloat16, torch.float32]),
    ],
)
def test_the_step_keeps_its_precision_and_no_forward_is_made_without_need(inner, term, step, seen):
    module, teacher = Regressor(convolutions()), convolutions(7)
    ours, theirs = Types(module.net[0]), Types(teacher[0])
    fit_one_step(module, batch(), callback(teacher, inner, **term), precision=step)
    # Which arguments have rows is found out once: by a replay of all, and two by binary digit.
    digits = (len(batch()[0]) - 1).bit_length()
    assert ours.seen == seen + [torch.float32] * (1 + 2 * digits if term else 0)
    assert theirs.seen == [torch.float32]
    assert all(p.dtype == torch.float32 for p in module.parameters())


@pytest.mark.usefixtures("doctor")
def test_the_doctor_looks_at_the_float64_copy_all_the_same(recwarn):
    spec = SobolevSpec(terms=[SobolevTerm()])
    teacher = copy.deepcopy(convolutions(7))
    used = SobolevCallback(teacher, spec, inner_precision=LOW)
    fit_one_step(Regressor(convolutions()), batch(), used, **SINGLE)
    assert not [w for w in recwarn if "skipped" in str(w.message)]


def test_a_student_that_autocast_leaves_alone_is_refused():
    taught = callback(convolutions(7).double())
    with pytest.raises(ValueError, match="needs a student in float32, got one in float64"):
        fit_one_step(Regressor(convolutions().double()), batch(torch.float64), taught)
