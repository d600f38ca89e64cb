"""The Morse potential: a teacher that has every derivative."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev.experiments.forces.systems import MORSE


class MorseCluster(nn.Module):
    r"""The potential of the system ``morse13``, a sum over all pairs of atoms.

    .. math:: E = \sum_{i<j} \epsilon \left( e^{2 \rho (1 - r_{ij} / r_0)}
        - 2 e^{\rho (1 - r_{ij} / r_0)} \right)

    Args:
        depth: Energy :math:`\epsilon` in eV that binds a pair.
        distance: Where a pair rests, :math:`r_0` in Å.
        steepness: The exponent :math:`\rho`.

    Source:
        Morse 1929, Diatomic Molecules According to the Wave Mechanics.
    """

    def __init__(
        self,
        depth: float = MORSE["depth"],
        distance: float = MORSE["distance"],
        steepness: float = MORSE["steepness"],
    ) -> None:
        super().__init__()
        self.depth, self.distance, self.steepness = depth, distance, steepness

    def forward(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, " batch"]:
        """Return energies in eV at positions in Å."""
        first, second = torch.triu_indices(positions.shape[1], positions.shape[1], 1)
        lengths = (positions[:, first] - positions[:, second]).norm(dim=-1)
        decay = torch.exp(self.steepness * (1 - lengths / self.distance))
        return self.depth * (decay.square() - 2 * decay).sum(-1)
