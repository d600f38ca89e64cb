"""The README's code runs as it stands, and does what the text says."""

import re
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_sobolev import AnalyticTeacher

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL
)
FIRST, OPTIONS, STORED, LOOP, MIXIN = BLOCKS


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where a trainer without options writes
    before = L.Trainer.__init__

    def started(self, *args, **options):
        quick = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
        before(self, *args, **{**quick, "enable_progress_bar": False, **options})

    monkeypatch.setattr(L.Trainer, "__init__", started)
    torch.manual_seed(0)


def run(block, **names):
    exec(compile(block, "README.md", "exec"), names)
    return names


def error(names, module):
    x = 2 * torch.rand(1000, 2) - 1
    with torch.no_grad():
        return float((module.net(x) - names["target"](x)).square().mean())


def test_the_first_example_trains_and_derivatives_help():
    names = run(FIRST)
    with_derivatives = names["trainer"].lightning_module
    plain = names["Surrogate"]()
    L.Trainer(max_steps=500).fit(plain, names["loader"])
    assert error(names, with_derivatives) < 0.3 * error(names, plain)


def test_stored_forces_of_molecules_teach_their_energy():
    """The sign is right: a force is minus an energy's gradient, of its own molecule alone."""
    callback = run(STORED)["callback"]

    class Harmonic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.ones(3))

        def forward(self, pos, batch):
            each = pos @ self.slope
            return each.new_zeros(int(batch.max()) + 1).index_add(0, batch, each)

    class Energies(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Harmonic()

        def training_step(self, batch, batch_idx):
            energy = self.net(batch["pos"], batch["batch"])
            return 0.0 * torch.nn.functional.mse_loss(energy, batch["energy"])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    batch, slope = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2]), torch.tensor([1.0, -2.0, 0.5])
    pos, forces = torch.randn(8, 3), -slope.expand(8, 3)
    flat = {"pos": pos, "batch": batch, "energy": torch.zeros(3), "forces": forces}
    module = Energies()
    L.Trainer(max_steps=300, callbacks=[callback]).fit(module, DataLoader([flat] * 300, None))
    torch.testing.assert_close(module.net.slope.detach(), slope, atol=0.02, rtol=0)


def test_the_options_are_options():
    network = torch.nn.Linear(2, 1)
    run(OPTIONS, teacher=network)
    assert not network.weight.requires_grad


def test_the_loop_trains_and_derivatives_help():
    names = run(FIRST)
    net, plain = names["Surrogate"]().net, names["Surrogate"]()
    L.Trainer(max_steps=500).fit(plain, names["loader"])
    run(
        LOOP, torch=torch, net=net, teacher=AnalyticTeacher(names["target"]),
        optimizer=torch.optim.Adam(net.parameters(), lr=3e-3), loader=500 * list(names["loader"]),
    )  # fmt: skip
    assert error(names, SimpleNamespace(net=net)) < 0.5 * error(names, plain)


def test_the_mixin_trains():
    teacher = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    student = run(MIXIN)["Student"](teacher)
    before = student.net[0].weight.detach().clone()
    x = torch.randn(16, 8)
    data = TensorDataset(x, teacher(x).detach())
    trainer = L.Trainer(max_steps=3)
    trainer.fit(student, DataLoader(data, batch_size=16))
    assert not torch.equal(student.net[0].weight, before)
    assert trainer.callback_metrics["train/sobolev/order_1"] > 0
