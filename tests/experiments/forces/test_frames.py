import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from lightning_sobolev.experiments.forces import frame_files
from lightning_sobolev.experiments.forces import systems as atomic_systems
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.forces.frame_files import stored_frames
from lightning_sobolev.experiments.forces.morse import MorseCluster
from lightning_sobolev.experiments.forces.systems import atomic_system, simulate

pytest.importorskip("ase")

SHORT = {"num_validation_frames": 3, "num_test_frames": 4}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(atomic_systems, "_BURN_IN", 5)


@pytest.mark.parametrize("name", ["cu13", "morse13", "ethanol"])
def test_forces_are_minus_the_slope_of_the_energy(name):
    if name == "ethanol":
        pytest.importorskip("tblite")
    system = atomic_system(name)
    frames = simulate(system, 1, seed=0)
    atoms = system.build()
    assert atoms.numbers.tolist() == list(system.numbers)
    for atom, axis in ((0, 1), (5, 2)):
        energies = []
        for step in (1e-4, -1e-4):
            positions = frames["positions"][0].clone()
            positions[atom, axis] += step
            atoms.set_positions(positions.numpy())
            energies.append(atoms.get_potential_energy())
        slope = (energies[0] - energies[1]) / 2e-4
        assert_close(float(frames["forces"][0, atom, axis]), -slope, rtol=1e-4, atol=1e-5)


def test_the_morse_potential_is_ases():
    frames = simulate(atomic_system("morse13"), 3, seed=1)
    positions = frames["positions"].requires_grad_()
    energy = MorseCluster()(positions)
    (gradient,) = torch.autograd.grad(energy.sum(), positions)
    assert_close(energy.detach(), frames["energy"], rtol=1e-10, atol=1e-10)
    assert_close(-gradient, frames["forces"], rtol=1e-9, atol=1e-9)


def test_frames_are_simulated_once_and_stored_whole(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(frame_files, "simulate", broken)
        with pytest.raises(KeyboardInterrupt):
            stored_frames(tmp_path, "morse13", 2, seed=0)
    assert list(tmp_path.iterdir()) == []
    first = stored_frames(tmp_path, "morse13", 2, seed=0)
    monkeypatch.setattr(frame_files, "simulate", broken)
    again = stored_frames(tmp_path, "morse13", 2, seed=0)
    assert torch.equal(first["forces"], again["forces"])
    assert [path.name for path in tmp_path.iterdir()] == ["morse13_2_0.safetensors"]


def test_damage_and_other_settings_are_found(tmp_path):
    stored_frames(tmp_path, "morse13", 2, seed=0)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"\0" * 8)
    with pytest.raises(ValueError, match=r"must have the sha256 .*: delete it"):
        stored_frames(tmp_path, "morse13", 2, seed=0)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"must be a file of frames, .*: delete it"):
        stored_frames(tmp_path, "morse13", 2, seed=0)
    path.write_bytes(whole)
    save_file(load_file(path), path, metadata={"settings": "others"})
    with pytest.raises(ValueError, match=r"must have the settings .*, got others: delete it"):
        stored_frames(tmp_path, "morse13", 2, seed=0)


def test_batches_hold_the_gradient_of_the_energy(tmp_path):
    data = ForcesDataModule("morse13", 4, root=tmp_path, pool=5, dtype=torch.float64, **SHORT)
    batch = next(iter(data.train_dataloader()))
    positions = batch["positions"].requires_grad_()
    (gradient,) = torch.autograd.grad(MorseCluster()(positions).sum(), positions)
    assert_close(batch["gradient"], gradient, rtol=1e-9, atol=1e-9)
    assert len(batch["energy"]) == 4
    sizes = [len(data.validation_points()), len(data.test_points())]
    assert sizes == [3, 4]
    energy = data.training_points().columns["energy"]
    assert_close(data.energy_statistics(), (float(energy.mean()), float(energy.std(correction=0))))


def test_one_seed_draws_training_frames_another_moves_the_atoms(tmp_path):
    def drawn(seed):
        data = ForcesDataModule("morse13", 2, root=tmp_path, pool=5, seed=seed, **SHORT)
        return data.training_points().columns["energy"]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    system = atomic_system("morse13")
    first, again, other = (simulate(system, 2, seed=seed)["positions"] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_settings_are_checked_and_a_missing_package_names_its_extra(monkeypatch):
    with pytest.raises(ValueError, match=r"system must be one of .*, got 'water'"):
        ForcesDataModule("water", 2)
    with pytest.raises(ValueError, match="num_frames must be between 2 and pool=1000, got 1"):
        ForcesDataModule("cu13", 1)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        simulate(atomic_system("cu13"), 0, seed=0)
    monkeypatch.setitem(sys.modules, "ase.cluster", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'mol'"):
        atomic_system("cu13").build()
