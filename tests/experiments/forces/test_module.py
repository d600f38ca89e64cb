from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev import BatchTeacher, SobolevCallback, SobolevSpec, SobolevTerm
from lightning_sobolev.experiments.forces import data as forces_data
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.forces.module import ForceFieldModule
from lightning_sobolev.experiments.forces.morse import MorseCluster
from lightning_sobolev.experiments.forces.schnet import SchNet
from lightning_sobolev.experiments.forces.systems import atomic_system
from tests.plugin._trainers import trainer

ETHANOL = atomic_system("ethanol").numbers
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def ethanol():
    torch.manual_seed(0)
    return SchNet("ethanol", features=8, radial=6)


@pytest.fixture
def positions(generator):
    return 2 * torch.randn(3, len(ETHANOL), 3, generator=generator)


def gradient(net, positions):
    x = positions.clone().requires_grad_()
    return torch.autograd.grad(net(x).sum(), x)[0]


def test_moving_and_turning_changes_no_energy(ethanol, positions, generator):
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    moved = positions @ turn + torch.randn(3, generator=generator)
    assert_close(ethanol(moved), ethanol(positions))
    assert_close(gradient(ethanol, moved), gradient(ethanol, positions) @ turn)
    assert not torch.allclose(ethanol(1.1 * positions), ethanol(positions))


def test_swapping_atoms_of_one_element_changes_no_energy(ethanol, positions):
    order = [1, 0, 2, 8, 7, 3, 4, 5, 6]  # carbons and hydrogens
    assert_close(ethanol(positions[:, order]), ethanol(positions))
    assert_close(gradient(ethanol, positions[:, order]), gradient(ethanol, positions)[:, order])
    exchanged = positions[:, [2, 1, 0, *range(3, 9)]]  # a carbon and the oxygen
    assert not torch.allclose(ethanol(exchanged), ethanol(positions))


def test_atoms_beyond_the_cutoff_and_other_rows_do_not_matter(ethanol, positions):
    apart = torch.zeros(1, len(ETHANOL), 3)
    apart[0, :, 0] = 20.0 * torch.arange(len(ETHANOL))
    assert_close(gradient(ethanol, apart), torch.zeros_like(apart))
    assert_close(ethanol(positions[1:2]), ethanol(positions)[1:2])


@pytest.fixture
def frames(monkeypatch):
    """A data module whose frames are those of the Morse cluster, made without a simulation."""

    def made(root, system, num_frames, *, seed):
        del root
        assert system == "morse13"
        generator = torch.Generator().manual_seed(seed)
        grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[:13]
        x = 2.6 * grid + 0.1 * torch.randn(num_frames, 13, 3, generator=generator)
        with torch.inference_mode(False), torch.enable_grad():  # a test asks for them, too
            x = x.clone()
            forces = -gradient(MorseCluster(), x)
            return {"positions": x, "energy": MorseCluster()(x), "forces": forces}

    monkeypatch.setattr(forces_data, "stored_frames", made)
    return ForcesDataModule(
        "morse13", 16, pool=16, batch_size=8, num_validation_frames=8, num_test_frames=8
    )


def fitted(frames, *terms, steps=20, **settings):
    torch.manual_seed(0)
    net = SchNet("morse13", features=8, radial=6)
    module = ForceFieldModule(net, partial(torch.optim.Adam, lr=1e-2), **settings)
    spec, teacher = SobolevSpec(terms=terms or [SobolevTerm()]), BatchTeacher(jacobian="gradient")
    callbacks = [SobolevCallback(teacher, spec, module="net", doctor=False)] if terms else []
    used = trainer(*callbacks, max_steps=steps, max_epochs=-1, num_sanity_val_steps=0)
    used.fit(module, datamodule=frames)
    return module, used.test(module, datamodule=frames, verbose=False)[0]


def test_errors_are_in_ev_and_angstrom_and_the_unit_of_energy_in_the_checkpoint(frames):
    module, numbers = fitted(frames, steps=1)
    test, train = frames.test_points().columns, frames.training_points().columns
    energy_error = (module(test["positions"]).detach() - test["energy"]).abs().mean()
    force_error = (gradient(module, test["positions"]) - test["gradient"]).abs().mean()
    assert_close(numbers["test/energy_mae"], float(energy_error), rtol=1e-6, atol=0)
    assert_close(numbers["test/force_mae"], float(force_error), rtol=1e-6, atol=0)
    state = module.state_dict()
    assert_close(state["net.shift"], train["energy"].mean())
    assert_close(state["net.scale"], train["energy"].std(correction=0))


def test_forces_alone_teach_energies_up_to_a_constant_that_is_set(frames):
    module, numbers = fitted(frames, SobolevTerm(), energy_weight=0)
    _, plain = fitted(frames)
    assert numbers["test/force_mae"] < 0.8 * plain["test/force_mae"]
    train = frames.training_points().columns
    residual = (train["energy"] - module(train["positions"]).detach()).mean()
    assert abs(float(residual)) < 1e-6


def test_trainings_that_make_no_sense_are_refused(frames, monkeypatch):
    adam = partial(torch.optim.Adam, lr=1e-2)
    with pytest.raises(ValueError, match="energy_weight must be at least 0, got -1"):
        ForceFieldModule(SchNet("cu13"), adam, energy_weight=-1)
    with pytest.raises(ValueError, match="where no SobolevCallback teaches forces, got 0"):
        fitted(frames, steps=1, energy_weight=0)
    given = SimpleNamespace(datamodule=None, callbacks=[])
    monkeypatch.setattr(ForceFieldModule, "trainer", given)
    with pytest.raises(ValueError, match="must be a ForcesDataModule, got 'NoneType'"):
        ForceFieldModule(SchNet("cu13"), adam).on_fit_start()
