"""The Morse potential: a teacher that has every derivative."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev.experiments.forces.systems import MORSE


class MorseCluster(nn.Module):
    r"""The potential of the system ``morse13``, a sum over all pairs of atoms.

    .. math:: E = \sum_{i<j} \epsilon \left( e^{2 \rho (1 - r_{ij} / r_0)}
        - 2 e^{\rho (1 - r_{ij} / r_0)} \right)

    Source:
        Morse 1929, Diatomic Molecules According to the Wave Mechanics.
    """

    def forward(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, " batch"]:
        """Return energies in eV at positions in Å."""
        first, second = torch.triu_indices(positions.shape[1], positions.shape[1], 1)
        lengths = (positions[:, first] - positions[:, second]).norm(dim=-1)
        decay = torch.exp(MORSE["steepness"] * (1 - lengths / MORSE["distance"]))
        return MORSE["depth"] * (decay.square() - 2 * decay).sum(-1)
