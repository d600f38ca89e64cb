"""Optimizers as configurations give them: laws of the line search, and the schedule by hand."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lightning_sobolev.experiments.common.optimizers import configured, line_search
from lightning_sobolev.experiments.run.conf import config_folder


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def test_a_line_search_descends_at_every_iteration():
    student, x = net(), torch.linspace(0, 1, 40, dtype=torch.float64).reshape(20, 2)
    optimizer = line_search(student.parameters(), iterations=1)

    def closure():
        optimizer.zero_grad()
        loss = (student(x)[:, 0] - x.square().sum(-1)).square().mean()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure).detach()) for _ in range(30)]
    assert all(after <= before for before, after in pairwise(losses))
    assert losses[-1] < 0.25 * losses[0]


def test_the_rate_falls_along_half_a_cosine_step_by_step():
    steps = 10
    found = configured(
        net().parameters(),
        partial(torch.optim.SGD, lr=0.5),
        partial(CosineAnnealingLR, T_max=steps),
    )
    assert found["lr_scheduler"]["interval"] == "step"
    for step in range(steps):
        expected = 0.5 * (1 + math.cos(math.pi * step / steps)) / 2
        assert found["optimizer"].param_groups[0]["lr"] == pytest.approx(expected)
        found["optimizer"].step()
        found["lr_scheduler"]["scheduler"].step()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "soap", "lbfgs"])
def test_every_configured_optimizer_descends(name):
    if name == "soap":
        pytest.importorskip("pytorch_optimizer")
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        cfg = compose("train", [f"optimizer={name}", "lr=0.1", "steps=20"])
    weight = nn.Parameter(torch.ones(3, 2))
    found = configured([weight], instantiate(cfg.optimizer), instantiate(cfg.scheduler))
    optimizer = found["optimizer"] if isinstance(found, dict) else found

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    assert weight.detach().square().sum() < 0.8 * 6


def test_what_a_line_search_cannot_do_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"lr must be positive, got 0\.0"):
        line_search(net().parameters(), lr=0.0)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"optimizer=lbfgs needs one process: .* got 2"):
        line_search(net().parameters())
