"""The code of docs/label-files.md runs, and does what the page says."""

import re
import warnings
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch.testing import assert_close

PAGE = Path(__file__).parent.parent / "docs" / "label-files.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
QUIET = 'enable_progress_bar=False, logger=False, accelerator="cpu", '
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(3, 4))  # y = tanh(A x)


def run(block, names=None):
    names = {} if names is None else names
    code = block.replace("L.Trainer(", f"L.Trainer({QUIET}").replace("=200", "=20")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def labels():
    x = RANDOM.normal(size=(32, 4))
    y = np.tanh(x @ MATRIX.T)
    return x, y, (1 - y**2)[:, :, None] * MATRIX


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def imports():
    names = {}
    exec(BLOCKS[0].split("files =")[0], names)
    return names


def test_the_program_trains():
    x, y, jacobian = labels()
    np.savez("mq_data.npz", m_data=x, q_data=y)
    np.savez("JstarPhi_data.npz", JstarPhi_data=jacobian.swapaxes(1, 2))
    names = run(BLOCKS[0])
    assert (len(names["train"]), len(names["valid"])) == (24, 8)
    valid = names["data"][24:]
    assert_close(valid["jacobian"].numpy(), jacobian[24:].astype(np.float32))
    error = (names["student"].net(valid["x"]) - valid["y"]).square().mean()
    assert error / valid["y"].var() < 0.5
    assert names["trainer"].callback_metrics["train/sobolev/order_1"] < 0.5


def test_arrays_larger_than_memory():
    h5py = pytest.importorskip("h5py")
    x, y, jacobian = labels()
    with h5py.File("runs.h5", "w") as file:
        file["train/m"], file["train/q"], file["train/J"] = x, y, jacobian
    names = run(BLOCKS[1], imports())
    assert_close(names["inputs"].numpy(), x.astype(np.float32))
    assert sum(len(batch["jacobian"]) for batch in names["loader"]) == 32


def test_forces_are_minus_the_gradient():
    forces = RANDOM.normal(size=(5, 3, 3))
    np.savez("molecule.npz", R=RANDOM.normal(size=(5, 3, 3)), E=RANDOM.normal(size=5), F=forces)
    names = run(BLOCKS[2], imports())
    assert_close(names["energies"][:]["jacobian"].numpy(), -forces.astype(np.float32))


def test_atoms():
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    frames = []
    for symbols in ("H2O", "He", "CH4"):
        atoms = ase.Atoms(symbols, cell=np.eye(3) * 5, pbc=True)
        atoms.positions = RANDOM.normal(size=(len(atoms), 3))
        atoms.arrays["vs"] = atoms.arrays["hessian_col"] = atoms.positions.copy()
        atoms.info["REF_energy"] = 1.0
        atoms.calc = SinglePointCalculator(atoms, forces=atoms.positions, stress=np.arange(6.0))
        frames.append(atoms)
    write("train.xyz", frames, format="extxyz")
    names = run(BLOCKS[3], imports())
    assert names["batch"]["stress"].shape == (2, 3, 3)
    assert len(names["batch"]["positions"]) == len(names["batch"]["batch"])
    callback = run(BLOCKS[4])["callback"]
    assert error_of_forces(names["loader"], callback) < 0.05 * error_of_forces(names["loader"])


class Pull(torch.nn.Module):
    """Energies of atoms in one field: forces are alike everywhere."""

    def __init__(self):
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor([[0.5], [0.1]]))

    def forward(self, positions, batch):
        powers = torch.stack([positions.square().sum(1), positions.sum(1)], 1)
        energies = (powers @ self.strength)[:, 0]
        return energies.new_zeros(int(batch.max()) + 1).index_add(0, batch, energies)


class Energies(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Pull()

    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(batch["positions"], batch["batch"]).sum()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def error_of_forces(loader, *callbacks):
    """Return the squared error of forces that are the positions, behind a training."""
    module = Energies()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=100, callbacks=list(callbacks), enable_checkpointing=False, **quiet
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    return float((module.net.strength.detach() - torch.tensor([[-0.5], [0.0]])).square().sum())


def test_every_block_is_run():
    assert len(BLOCKS) == 5
