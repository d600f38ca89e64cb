"""A slice of the stacked training is a run with the callback, and its tables count right."""

import lightning.pytorch as L
import pytest
import torch
from torch.nn.functional import mse_loss
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec
from lightning_sobolev.functional import LANDSCAPES
from lightning_sobolev.tasks.records import read_csv
from lightning_sobolev.tasks.stacked.cells import (
    METHODS,
    Cell,
    data_of,
    draw_points,
    label_nmse,
    labels_of,
    stacked,
)
from lightning_sobolev.tasks.stacked.networks import bare_network
from lightning_sobolev.tasks.stacked.showing import show
from lightning_sobolev.tasks.stacked.tables import error_lines, label_lines, sign_lines
from lightning_sobolev.tasks.stacked.training import LR, train
from tests.plugin._trainers import as_loader, fit

STEPS = 24


class Run(L.LightningModule):
    def __init__(self, seed):
        super().__init__()
        self.net = bare_network(seed)

    def training_step(self, batch, batch_idx):
        return mse_loss(self.net(batch["x"])[:, 0], batch["y"])

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("method", ["none", "fading_1", "balanced_0.1", "elements_1"])
def test_a_slice_is_a_run_with_the_callback(method):
    cells = [Cell("booth", 12, name, 0.1, 3) for name in METHODS]
    tables = [data_of(cell) for cell in cells]
    known, held_out, _ = (stacked(each) for each in zip(*tables, strict=True))
    net, _ = train(cells, known, held_out, STEPS)
    place = list(METHODS).index(method)

    run, batch = Run(3), {**tables[place][0]}
    batch["x"] = batch["x"].detach()
    spec = SobolevSpec(terms=[METHODS[method]])
    own = SobolevCallback(BatchTeacher(jacobian="dydx"), spec, module="net", doctor=False)
    fit(run, as_loader([batch] * STEPS), own, precision="32-true")
    ours = torch.cat([each.flatten() for each in run.net.parameters()])
    theirs = torch.cat([each[place].flatten() for each in net.weights])
    assert_close(theirs, ours, rtol=1e-3, atol=2e-5)


HEADER = (
    "function,num_points,method,noise,seed,derivatives,label_nmse,test_value_nmse,"
    "test_derivative_nmse,validation_mse,validation_rise,early_cosine,late_cosine\n"
)
TABLE = """booth,20,none,0.0,0,exact,0.0,0.1,1.0,0.1,1.0,0.0,0.0
booth,20,none,0.0,1,exact,0.0,0.2,1.0,0.2,1.0,0.0,0.0
booth,20,constant_1,0.0,0,exact,0.25,0.4,1.0,0.2,1.0,-0.1,0.1
booth,20,constant_1,0.0,1,exact,0.75,0.1,1.0,0.1,2.0,0.1,0.1
"""


def rows_of(path, table=TABLE):
    path.write_text(HEADER + table)
    return read_csv(path)[1]


def test_the_tables_are_means_ratios_and_counts(tmp_path):
    rows = rows_of(tmp_path / "balance.csv")
    assert error_lines(rows, "test_value_nmse")[2:] == [
        "| booth | 20 | 0.15 ± 0.05 | 0.25 ± 0.15 |",
        "| *ratio, geometric mean* |  | 1 | 1.41 |",  # of 4 and 1/2
    ]
    assert [line.split(" | ")[1:] for line in sign_lines(rows)[2:]] == [
        ["1 of 1", "0 of 1", "0 of 2 |"],
        ["0 of 1", "1 of 1", "0 of 2 |"],
        ["1 of 1", "0 of 1", "0 of 2 |"],
        ["0 of 1", "0 of 1", "0 of 2 |"],
    ]
    assert label_lines(rows)[2:] == ["| booth | 0.5 ± 0.25 |"]


def test_columns_tell_estimated_derivatives_from_exact_ones(tmp_path):
    more = TABLE.replace("constant_1,0.0,1,exact", "constant_1,0.0,1,neighbors_1")
    header, *_ = error_lines(rows_of(tmp_path / "x.csv", more), "test_value_nmse")
    assert header == "| function | points | none | constant_1 | constant_1, neighbors_1 |"


def test_the_page_is_written_and_levels_of_noise_are_drawn(tmp_path):
    table = tmp_path / "noise.csv"
    rows_of(table, TABLE.replace("constant_1,0.0,1", "constant_1,0.3,1"))
    page, picture = show(table)
    assert "| booth | 20 | 0.15 ± 0.05 | 0.4 | 0.1 |" in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows_of(table)
    assert show(table) == [page]
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".md", ".png"}


def test_estimated_labels_use_values_alone():
    cell = Cell("booth", 30, "constant_1", 0.0, 0, "neighbors_2")
    exact = draw_points("booth", 30, 0)
    # Booth is a quadratic, which polynomials of degree 2 through neighbours reproduce.
    assert_close(labels_of(cell)["dydx"], exact["dydx"], rtol=1e-6, atol=1e-6)
    assert label_nmse(cell) < 1e-12
    planes = Cell("booth", 30, "constant_1", 0.0, 0, "neighbors_1")
    assert 1e-3 < label_nmse(planes) < 1


def test_the_error_of_noisy_labels_is_the_square_of_the_noise():
    # Over 20,000 numbers the mean square of a normal is 1 within 4 %.
    cell = Cell("rosenbrock", 10_000, "constant_1", 0.5, 0)
    assert label_nmse(cell) == pytest.approx(0.25, rel=0.04)
    assert label_nmse(Cell("rosenbrock", 10, "constant_1", 0.0, 0)) == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"function": "sphere"}, f"function must be one of .*{next(iter(LANDSCAPES))}.*'sphere'"),
        ({"method": "heavy"}, "method must be one of .*'none'.*got 'heavy'"),
        ({"derivatives": "none"}, "derivatives must be one of .*'neighbors_1'.*got 'none'"),
        ({"noise": -1.0}, "noise must be at least 0, got -1"),
    ],
)
def test_a_cell_refuses_what_it_does_not_know(changed, message):
    right = {"function": "booth", "num_points": 9, "method": "none", "noise": 0.0, "seed": 0}
    with pytest.raises(ValueError, match=message):
        Cell(**{**right, **changed})
