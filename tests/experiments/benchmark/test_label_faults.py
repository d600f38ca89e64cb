"""The study of the doctor for labels: its labels are right, and so are its counts."""

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.testing import assert_close

from lightning_sobolev.experiments.benchmark import label_faults
from lightning_sobolev.experiments.benchmark.label_faults import (
    Cell,
    mislabeled,
    run_label_faults,
    sample,
)
from lightning_sobolev.experiments.run.conf import config_folder


def configured(out, **changes):
    small = {"functions": "[booth,rosenbrock]", "inputs": "[2]", "points": "[40]"}
    small |= {"payoffs": "[40]", "draws": 3, "draws_of_faults": 2, "progress": "false"} | changes
    given = [f"{key}={value}" for key, value in small.items()]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("benchmark", ["study=labels", f"out={out}", *given])


@pytest.mark.parametrize("function", ["mccormick", "rosenbrock"])
def test_a_map_has_its_own_derivative(function):
    x, y, jacobian = sample(Cell(function, "gradient", 4, 5, "right"), seed=0)
    _, _, gradient = sample(Cell(function, "value", 4, 5, "right"), seed=0)
    rotation = torch.linalg.lstsq(gradient, y).solution.T if len(x) > 4 else None
    assert_close(rotation @ rotation.T, torch.eye(4).double(), atol=1e-9, rtol=0)
    assert_close(rotation.T @ jacobian, (rotation.T @ jacobian).mT, atol=1e-9, rtol=1e-9)
    assert not torch.allclose(jacobian, jacobian.mT)


def test_a_function_of_two_is_summed_over_pairs():
    x, y, gradient = sample(Cell("booth", "value", 6, 5, "right"), seed=1)
    u, v = x[:, 0::2].clone().requires_grad_(), x[:, 1::2].clone().requires_grad_()
    booth = ((u + 2 * v - 7) ** 2 + (2 * u + v - 5) ** 2).sum(1)
    assert_close(y, booth.detach())
    rows = torch.autograd.grad(booth.sum(), (u, v))
    assert_close(gradient, torch.stack(rows, 2).flatten(1))


def test_faults_are_what_they_are_called():
    jacobian = torch.arange(8.0).reshape(2, 2, 2)
    assert_close(mislabeled(jacobian, "shifted", 0)[1], jacobian[0])
    assert_close(mislabeled(jacobian, "transposed", 0)[0, 0, 1], jacobian[0, 1, 0])
    assert_close(mislabeled(jacobian, "unit", 0) / 100, -mislabeled(jacobian, "sign", 0))


def test_every_cell_is_counted_once_and_kept(tmp_path, monkeypatch):
    page = run_label_faults(configured(tmp_path))
    table = pd.read_csv(tmp_path / "label_faults.csv")
    assert len(table) == 2 * 7 + 3
    assert (table[list(label_faults.FINDINGS)].sum(axis=1) == table["draws"]).all()
    booth = table[(table["function"] == "booth") & (table["map"] == "value")].set_index("labels")
    assert booth.loc["sign", "sign"] == 2
    assert "## 2 inputs, 40 points" in page.read_text()
    monkeypatch.setattr(label_faults, "measure", lambda *_: pytest.fail("measured again"))
    assert run_label_faults(configured(tmp_path)).read_text() == page.read_text()


def test_odd_numbers_of_inputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="inputs must be even"):
        run_label_faults(configured(tmp_path, inputs="[3]"))
