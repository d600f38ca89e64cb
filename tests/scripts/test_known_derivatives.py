"""A slice of the stacked training is a run with the callback."""

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec
from scripts import known_derivatives as script
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
