"""A slice of the stacked training is a run with the callback."""

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec
from scripts import known_derivatives as script
from scripts import known_derivatives_tables as tables
from tests.plugin._trainers import as_loader, fit

STEPS = 24


class Run(L.LightningModule):
    def __init__(self, seed):
        super().__init__()
        self.net = script.bare_network(seed)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"])[:, 0], batch["y"])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=script.LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("method", ["none", "fading_1", "balanced_0.1", "elements_1"])
def test_a_slice_is_a_run_with_the_callback(method):
    cells = [script.Cell("booth", 12, name, 0.1, 3) for name in script.METHODS]
    tables = [script.data_of(cell) for cell in cells]
    known, held_out, _ = (script.stacked(each) for each in zip(*tables, strict=True))
    net, _ = script.train(cells, known, held_out, STEPS)
    place = list(script.METHODS).index(method)

    run, batch = Run(3), {**tables[place][0]}
    batch["x"] = batch["x"].detach()
    spec = SobolevSpec(terms=[script.METHODS[method]])
    own = SobolevCallback(BatchTeacher(jacobian="dydx"), spec, module="net", doctor=False)
    fit(run, as_loader([batch] * STEPS), own, precision="32-true")
    ours = torch.cat([each.flatten() for each in run.net.parameters()])
    theirs = torch.cat([each[place].flatten() for each in net.weights])
    assert_close(theirs, ours, rtol=1e-3, atol=2e-5)


def test_the_command_line_writes_a_table(tmp_path, monkeypatch):
    cell = script.Cell("booth", 12, "none", 0.0, 0)
    monkeypatch.setattr(script, "cells_of", lambda _: [[cell]])
    path = tmp_path / "noise.csv"
    monkeypatch.setattr("sys.argv", ["x", "noise", "--out", str(path), "--steps", "2"])
    script.main()
    header, row = path.read_text().splitlines()
    assert header.startswith("function,num_points,method,noise,seed,test_value_nmse")
    assert row.startswith("booth,12,none,0.0,0,")
    assert list(tmp_path.iterdir()) == [path]


HEADER = (
    "function,num_points,method,noise,seed,test_value_nmse,test_derivative_nmse,validation_mse,"
    "validation_rise,early_cosine,late_cosine\n"
)
TABLE = """booth,20,none,0.0,0,0.1,1.0,0.1,1.0,0.0,0.0
booth,20,none,0.0,1,0.2,1.0,0.2,1.0,0.0,0.0
booth,20,constant_1,0.0,0,0.4,1.0,0.2,1.0,-0.1,0.1
booth,20,constant_1,0.0,1,0.1,1.0,0.1,2.0,0.1,0.1
"""


def test_the_tables_are_means_ratios_and_counts(tmp_path):
    path = tmp_path / "balance.csv"
    path.write_text(HEADER + TABLE)
    rows = tables.read(path)
    assert tables.errors(rows, "test_value_nmse")[2:] == [
        "| booth | 20 | 0.15 ± 0.05 | 0.25 ± 0.15 |",
        "| *ratio, geometric mean* |  | 1 | 1.41 |",  # of 4 and 1/2
    ]
    assert [line.split(" | ")[1:] for line in tables.signs(rows)[2:]] == [
        ["1 of 1", "0 of 1", "0 of 2 |"],
        ["0 of 1", "1 of 1", "0 of 2 |"],
        ["1 of 1", "0 of 1", "0 of 2 |"],
        ["0 of 1", "0 of 1", "0 of 2 |"],
    ]
