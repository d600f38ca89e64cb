import pytest
import torch
from torch.testing import assert_close

from lightning_sobolev.experiments.forces.potentials import morse

SETTINGS = {"depth": 0.7, "distance": 2.0, "steepness": 4.0}


@pytest.mark.usefixtures("float64")
def test_a_pair_rests_at_its_distance_with_its_depth():
    pair = torch.tensor([[[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]], requires_grad=True)
    energy = morse(pair, **SETTINGS)
    (gradient,) = torch.autograd.grad(energy, pair)
    assert_close(energy.detach(), torch.tensor([-0.7]))
    assert_close(gradient, torch.zeros(1, 2, 3))


@pytest.mark.usefixtures("float64")
def test_pairs_add_up(generator):
    atoms = 3 * torch.rand(1, 4, 3, generator=generator)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    parts = [morse(atoms[:, list(pair)], **SETTINGS) for pair in pairs]
    assert_close(morse(atoms, **SETTINGS), sum(parts))
