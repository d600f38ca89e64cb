"""Interatomic potentials that torch can differentiate as often as is asked."""

import torch
from jaxtyping import Float
from torch import Tensor


def morse(
    positions: Float[Tensor, "batch atoms 3"], *, depth: float, distance: float, steepness: float
) -> Float[Tensor, " batch"]:
    r"""Sum the Morse potential over all pairs of atoms.

    .. math:: E = \sum_{i<j} \epsilon \left( e^{2 \rho (1 - r_{ij} / r_0)}
        - 2 e^{\rho (1 - r_{ij} / r_0)} \right)

    Args:
        positions: Of the atoms, in Å where ``distance`` is.
        depth: Energy :math:`\epsilon` that binds a pair; energies come in its unit.
        distance: Where a pair rests, :math:`r_0`.
        steepness: The exponent :math:`\rho`.

    Returns:
        Energies.

    Source:
        Morse 1929, Diatomic Molecules According to the Wave Mechanics.
    """
    first, second = torch.triu_indices(positions.shape[1], positions.shape[1], 1)
    lengths = (positions[:, first] - positions[:, second]).norm(dim=-1)
    decay = torch.exp(steepness * (1 - lengths / distance))
    return depth * (decay.square() - 2 * decay).sum(-1)
