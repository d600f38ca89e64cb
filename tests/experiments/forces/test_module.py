from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import (
    BatchTeacher,
    NetworkTeacher,
    SobolevCallback,
    SobolevSpec,
    SobolevTerm,
)
from lightning_sobolev.experiments.forces import data as force_module
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.forces.module import ForceFieldModule
from lightning_sobolev.experiments.forces.potentials import morse
from lightning_sobolev.experiments.forces.schnet import MorseCluster, SchNet
from lightning_sobolev.experiments.forces.systems import MORSE, Frames, atomic_system
from lightning_sobolev.experiments.regression.data import LandscapeDataModule

ETHANOL = atomic_system("ethanol").numbers


@pytest.fixture
def ethanol():
    torch.manual_seed(0)
    return SchNet("ethanol", features=8, radial=6).double()


@pytest.fixture
def positions(generator):
    return 2 * torch.randn(3, len(ETHANOL), 3, generator=generator, dtype=torch.float64)


def gradient(net, positions):
    x = positions.clone().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x)[0]


def test_moving_and_turning_changes_no_energy(ethanol, positions, generator):
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    moved = positions @ turn + torch.randn(3, generator=generator, dtype=torch.float64)
    assert_close(ethanol(moved), ethanol(positions))
    assert_close(gradient(ethanol, moved), gradient(ethanol, positions) @ turn)
    assert not torch.allclose(ethanol(1.1 * positions), ethanol(positions))


def test_swapping_atoms_of_one_element_changes_no_energy(ethanol, positions):
    order = [1, 0, 2, 8, 7, 3, 4, 5, 6]  # carbons and hydrogens
    assert_close(ethanol(positions[:, order]), ethanol(positions))
    assert_close(gradient(ethanol, positions[:, order]), gradient(ethanol, positions)[:, order])
    exchanged = positions[:, [2, 1, 0, *range(3, 9)]]  # a carbon and the oxygen
    assert not torch.allclose(ethanol(exchanged), ethanol(positions))


def test_atoms_beyond_the_cutoff_do_not_interact(ethanol):
    apart = torch.zeros(1, len(ETHANOL), 3, dtype=torch.float64)
    apart[0, :, 0] = 20.0 * torch.arange(len(ETHANOL))
    assert_close(gradient(ethanol, apart), torch.zeros_like(apart))


def test_rows_do_not_depend_on_each_other(ethanol, positions):
    assert_close(ethanol(positions[1:2]), ethanol(positions)[1:2])


@pytest.fixture
def frames(monkeypatch):
    """A data module whose frames are those of the Morse cluster, made without a simulation."""

    def made(root, system, num_frames, *, seed):
        del root
        assert system == "morse13"
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.enable_grad():  # a test asks for them, too
            grid = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64)] * 3)[:13]
            noise = torch.randn(num_frames, 13, 3, generator=generator, dtype=torch.float64)
            x = (2.6 * grid + 0.1 * noise).requires_grad_()
            energy = morse(x, **MORSE)
            (slope,) = torch.autograd.grad(energy.sum(), x)
        return Frames(x.detach(), energy.detach(), -slope)

    monkeypatch.setattr(force_module, "stored_frames", made)
    return ForcesDataModule(
        "morse13", 16, pool=16, batch_size=8, steps_per_epoch=40, num_validation_frames=8,
        num_test_frames=8, dtype=torch.float64,
    )  # fmt: skip


def fitted(frames, callback=None, *, steps=20, **settings):
    pl.seed_everything(0, verbose=False)
    net = SchNet("morse13", features=8, radial=6)
    module = ForceFieldModule(net, max_steps=steps, lr=1e-2, **settings)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[callback] if callback else [],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=frames)
    (numbers,) = trainer.test(module, datamodule=frames, verbose=False)
    return module, numbers


def forces_from_the_batch():
    return SobolevCallback(
        BatchTeacher(jacobian="gradient"), SobolevSpec(terms=[SobolevTerm()]), module="net"
    )


@pytest.mark.usefixtures("float64")
def test_the_unit_of_energy_is_in_the_checkpoint(frames):
    module, _ = fitted(frames, steps=1)
    energy = frames.training_points().columns["energy"]
    state = module.state_dict()
    assert_close(state["net.shift"], energy.mean())
    assert_close(state["net.scale"], energy.std(correction=0))


@pytest.mark.usefixtures("float64")
def test_errors_are_in_ev_and_angstrom(frames):
    module, numbers = fitted(frames, steps=1)
    test = frames.test_points().columns
    energy_error = (module(test["positions"]).detach() - test["energy"]).abs().mean()
    force_error = (gradient(module, test["positions"]) - test["gradient"]).abs().mean()
    assert_close(numbers["test/energy_mae"], float(energy_error), rtol=1e-6, atol=0)
    assert_close(numbers["test/force_mae"], float(force_error), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("float64")
def test_forces_alone_teach_energies_up_to_a_constant_that_is_set(frames):
    module, numbers = fitted(frames, forces_from_the_batch(), energy_weight=0)
    _, ignorant = fitted(frames, steps=1)
    assert numbers["test/force_mae"] < 0.8 * ignorant["test/force_mae"]
    train = frames.training_points().columns
    residual = (train["energy"] - module(train["positions"]).detach()).mean()
    assert abs(float(residual)) < 1e-6


@pytest.mark.usefixtures("float64")
def test_forces_help_the_energies_of_few_frames(frames):
    _, plain = fitted(frames)
    _, both = fitted(frames, forces_from_the_batch())
    assert both["test/force_mae"] < plain["test/force_mae"]


@pytest.mark.usefixtures("float64")
def test_hessian_vectors_of_a_teacher_are_matched(frames):
    terms = [SobolevTerm(), SobolevTerm(order=2, num_projections=2)]
    teacher = NetworkTeacher(MorseCluster())
    _, numbers = fitted(
        frames, SobolevCallback(teacher, SobolevSpec(terms=terms), module="net"), steps=3
    )
    assert 0 < numbers["test/force_mae"] < 10


def test_a_weight_must_not_be_negative():
    with pytest.raises(ValueError, match="energy_weight must be at least 0, got -1"):
        ForceFieldModule(SchNet("cu13"), energy_weight=-1)


def test_a_training_that_would_learn_nothing_is_refused(frames):
    with pytest.raises(ValueError, match="where no SobolevCallback teaches forces, got 0"):
        fitted(frames, steps=1, energy_weight=0)


def test_other_data_are_refused(monkeypatch):
    given = SimpleNamespace(datamodule=LandscapeDataModule("booth", 4), callbacks=[])
    monkeypatch.setattr(ForceFieldModule, "trainer", given)
    with pytest.raises(ValueError, match="needs a ForcesDataModule, got LandscapeDataModule"):
        ForceFieldModule(SchNet("cu13")).on_fit_start()
