"""The doctor says what the chosen terms cost on the user's own student."""

import logging
import re

import pytest
import torch
from torch import nn

from lightning_sobolev import Linear, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.plugin.cost import PeakMemory
from tests.plugin._students import ManualRegressor, Regressor, Remembers, mlp
from tests.plugin._trainers import fit, points, weights

pytestmark = pytest.mark.usefixtures("doctor")


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
        student = Regressor(Remembers(mlp(20, 6)))
        with pytest.warns(UserWarning, match="finite differences skipped"):
            assert cost_of(SobolevTerm(), student) is None
    text = r"with the terms the student takes \d+\.\d times the time \(.* ms instead of .*\) and "
    assert re.search(text, caplog.text)
    assert "the cost was not measured: Only Tensors created explicitly" in caplog.text
