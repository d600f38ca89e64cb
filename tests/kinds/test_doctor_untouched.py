"""The doctor looks at copies: whatever is the user's is handed back as it was."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import NetworkTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from tests.kinds._by_hand import Step, X, Y, exact, fit, mlp, numbers, weights

BATCH = (X, Y)


@pytest.fixture
def seeded():
    """Seed every global generator and give it back afterwards."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


class Noisy(nn.Module):
    """Draws from every global generator in its forward."""

    def __init__(self):
        super().__init__()
        self.body, self.drop = mlp(), nn.Dropout(0.5)

    def forward(self, x):
        scale = 1.0 + 0.1 * random.random() + 0.1 * np.random.rand()
        return self.drop(self.body(scale * x + 0.1 * torch.randn_like(x)))


@pytest.mark.usefixtures("seeded")
@pytest.mark.filterwarnings("ignore:Sobolev doctor")  # such a student cannot be checked
@pytest.mark.parametrize("doctor", [True, False])
def test_no_global_generator_moves_because_of_the_doctor(doctor):
    module = Step(Noisy())
    fit(module, [BATCH] * 2, exact(doctor=doctor))
    found = [torch.get_rng_state(), random.random(), np.random.rand()]
    torch.default_generator.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    plain = Step(Noisy())
    fit(plain, [BATCH] * 2)
    expected = [torch.get_rng_state(), random.random(), np.random.rand()]
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["manual_seed_all", "manual_seed", "seed_all"])
def test_no_generator_of_a_device_is_seeded(name, monkeypatch):
    """On a machine with CUDA every dropout would draw the same masks for every seed."""
    asked, module, used = [], Step(), exact(doctor=True, term={"order": 2})
    monkeypatch.setattr(torch.cuda, name, lambda *args: asked.append(args))
    fit(module, [BATCH], used)
    assert asked == []


class Stateful(nn.Module):
    """Buffers that move in each call, a child in eval mode, a frozen layer, a tensor attribute."""

    def __init__(self):
        super().__init__()
        self.body, self.norm = mlp(), nn.BatchNorm1d(3).double()
        self.quiet = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3).double()).eval()
        self.body[2].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.memory, self.count = [], 0

    def forward(self, x):
        self.calls.add_(1.0)
        self.count += 1
        self.memory.append(x.detach().clone())
        return self.body(self.quiet(self.norm(x)))


def looks_like(module):
    """Return all that a module is, but for its weights."""
    return {
        "buffers": {name: b.clone() for name, b in module.named_buffers()},
        "modes": [float(part.training) for part in module.modules()],
        "trainable": [float(p.requires_grad) for p in module.parameters()],
        "gradients": [float(p.grad is not None) for p in module.parameters()],
        "hooks": [
            len(hooks)
            for part in module.modules()
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        ],
        "memory": list(getattr(module, "memory", [])),
        "count": getattr(module, "count", 0),
        "attributes": [sum(map(ord, name)) for name in sorted(vars(module))],
    }


@pytest.mark.filterwarnings("ignore:Sobolev doctor", "ignore:Found 3 module")
@pytest.mark.parametrize("side", ["cotangent", "tangent"])
def test_the_student_is_handed_back_as_it_was(side):
    found = []
    for callbacks in ([exact(doctor=True, term={"side": side, "weight": 0.0})], []):
        module = Step(Stateful())
        module.net.register_forward_hook(lambda *_: None)
        fit(module, [BATCH] * 2, *callbacks)
        found.append((looks_like(module.net), weights(module)))
    assert_close(*found, rtol=1e-12, atol=1e-14)  # norms may be written out


@pytest.mark.filterwarnings("ignore:Sobolev doctor")
def test_the_doctor_changes_no_training():
    """Drawn directions, running scales and dropout are as without it."""
    term = SobolevTerm(projection="sphere", weight=0.1)
    trained = []
    for doctor in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            module = Step(nn.Sequential(mlp(outputs=5), nn.Dropout(0.5), mlp(inputs=5)))
            callback = SobolevCallback(mlp(seed=7), SobolevSpec(terms=[term]), doctor=doctor)
            fit(module, [BATCH] * 3, callback)
        trained.append((weights(module), str(callback.state_dict())))
    assert_close(trained[0][0], trained[1][0], rtol=0, atol=0)
    assert trained[0][1] == trained[1][1]


@pytest.mark.filterwarnings("ignore:Sobolev doctor")
def test_the_teacher_is_handed_back_as_it_was():
    teacher = Stateful().requires_grad_(False).eval()
    callback = exact(NetworkTeacher(teacher), doctor=True)
    before = looks_like(teacher)
    fit(Step(), [BATCH], callback)
    found = looks_like(teacher)
    for name in ("modes", "trainable", "gradients", "hooks", "attributes"):
        assert_close(found[name], before[name], rtol=0, atol=0)


@pytest.mark.parametrize("doctor", [True, False])
def test_the_batch_is_handed_back_as_it_was(doctor):
    kept = []

    class Keeps(Step):
        def training_step(self, batch, batch_idx):
            kept.append(batch[0])
            return mse_loss(self.net(batch[0]), batch[1])

    x = numbers(6, 3)
    fit(Keeps(), [(x, Y)], exact(doctor=doctor))
    for tensor in (x, kept[0]):
        assert_close(tensor, numbers(6, 3), rtol=0, atol=0)
        assert not tensor.requires_grad
        assert tensor.grad is None
