"""Energies of one system of atoms by continuous-filter convolutions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sobolev.experiments.forces.systems import atomic_system


def _two_layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Interaction(nn.Module):
    """Adds to every atom's features a message from every other atom."""

    def __init__(self, features: int, radial: int) -> None:
        super().__init__()
        self.filters = _two_layers(radial, features, features)
        self.incoming = nn.Linear(features, features, bias=False)
        self.outgoing = _two_layers(features, features, features)

    def forward(
        self,
        atoms: Float[Tensor, "batch atoms features"],
        waves: Float[Tensor, "batch atoms others radial"],
        envelope: Float[Tensor, "batch atoms others 1"],
        others: Tensor,
    ) -> Float[Tensor, "batch atoms features"]:
        """Return the new features."""
        messages = self.incoming(atoms)[:, others] * self.filters(waves) * envelope
        updated: Tensor = atoms + self.outgoing(messages.sum(2))
        return updated


class SchNet(nn.Module):
    r"""A small SchNet for one composition: ``[batch, atoms, 3]`` in Å to ``[batch]`` in eV.

    It sees distances and elements alone and sums over atoms, so it is invariant to translation,
    rotation, reflection and to swapping atoms of one element; its gradient turns with the atoms.

    .. math:: E = E_0 + s \sum_i u(h_i), \quad
        h_i \leftarrow h_i + g\Big(\sum_{j \ne i} (W h_j) \odot f(r_{ij})\Big)

    Cost: quadratic in the number of atoms; meant for some dozens.

    Args:
        system: Name of the system, which says the elements.
        features: Features of an atom.
        interactions: How often messages are passed.
        radial: Gaussians in which a distance is expanded.
        cutoff: Distance in Å at which messages have faded to zero.

    Source:
        Schütt et al. 2017, SchNet (arXiv:1706.08566).
    """

    shift: Tensor
    scale: Tensor
    kinds: Tensor
    others: Tensor
    centers: Tensor

    def __init__(
        self,
        system: str,
        *,
        features: int = 32,
        interactions: int = 2,
        radial: int = 20,
        cutoff: float = 8.0,
    ) -> None:
        super().__init__()
        numbers = atomic_system(system).numbers
        kinds = sorted(set(numbers))
        self.cutoff = cutoff
        self.embedding = nn.Embedding(len(kinds), features)
        layers = (Interaction(features, radial) for _ in range(interactions))
        self.interactions = nn.ModuleList(layers)
        self.readout = _two_layers(features, features, 1)
        self.register_buffer("kinds", torch.tensor([kinds.index(number) for number in numbers]))
        # for every atom the numbers of all the others: no distance is zero
        others = [[j for j in range(len(numbers)) if j != i] for i in range(len(numbers))]
        self.register_buffer("others", torch.tensor(others), persistent=False)
        self.register_buffer("centers", torch.linspace(0.5, cutoff, radial), persistent=False)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, " batch"]:
        """Return energies in eV."""
        lengths = (positions[:, :, None] - positions[:, self.others]).norm(dim=-1, keepdim=True)
        width = self.centers[1] - self.centers[0]
        waves = torch.exp(-0.5 * ((lengths - self.centers) / width).square())
        inside = (lengths / self.cutoff).clamp_max(1.0)
        envelope = 0.5 * (1 + torch.cos(math.pi * inside))
        atoms = self.embedding(self.kinds).expand(len(positions), -1, -1)
        for interaction in self.interactions:
            atoms = interaction(atoms, waves, envelope, self.others)
        energy: Tensor = self.shift + self.scale * self.readout(atoms).sum((1, 2))
        return energy
