"""Small systems of atoms with a real calculator, and frames of their thermal motion.

Needs ``ase`` (extra ``mol``); ethanol also needs ``tblite``. Energies are in eV, positions in Å and
forces, minus the gradient of the energy, in eV/Å.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

MORSE = {"depth": 0.35, "distance": 2.55, "steepness": 5.0}
"""Of ``morse13``: energy (eV) that binds a pair, where it rests (Å), and the exponent rho."""
_BURN_IN = 200


@dataclass(frozen=True, slots=True)
class AtomicSystem:
    """What is simulated and how."""

    numbers: tuple[int, ...]  # atomic number of every atom
    build: Callable[[], Any]  # returns ASE's atoms with a calculator
    temperature: float  # K
    time_step: float  # fs
    every: int = 10  # steps from one frame to the next
    parameters: str = ""  # of the calculator; frames that were made with others are not used


def _needed(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{package} is needed to simulate atoms, got {error}: install the extra 'mol'"
        ) from error


def _copper() -> Any:
    atoms = _needed("ase.cluster", "ase").Icosahedron("Cu", 2)
    atoms.calc = _needed("ase.calculators.emt", "ase").EMT()
    return atoms


def _morse() -> Any:
    atoms, names = _copper(), {"depth": "epsilon", "distance": "r0", "steepness": "rho0"}
    settings = {names[key]: value for key, value in MORSE.items()}
    # Cut off where no pair of the cluster comes: the sum over all pairs is exact.
    morse = _needed("ase.calculators.morse", "ase").MorsePotential
    atoms.calc = morse(rcut1=20.0, rcut2=21.0, **settings)
    return atoms


def _ethanol() -> Any:
    atoms = _needed("ase.build", "ase").molecule("CH3CH2OH")
    atoms.calc = _needed("tblite.ase", "tblite").TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


SYSTEMS = {
    "cu13": AtomicSystem((29,) * 13, _copper, 600.0, 5.0),
    "morse13": AtomicSystem((29,) * 13, _morse, 600.0, 5.0, parameters=str(MORSE)),
    "ethanol": AtomicSystem((6, 6, 8, 1, 1, 1, 1, 1, 1), _ethanol, 500.0, 1.0),
}
"""Copper in the effective medium theory, a Morse cluster, ethanol in GFN2-xTB."""


def atomic_system(name: str) -> AtomicSystem:
    """Return a system by its name."""
    if name not in SYSTEMS:
        raise ValueError(f"system must be one of {tuple(SYSTEMS)}, got {name!r}")
    return SYSTEMS[name]


def simulate(system: AtomicSystem, num_frames: int, *, seed: int) -> dict[str, Tensor]:
    """Run Langevin dynamics; return ``positions``, ``energy`` and ``forces`` now and then."""
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, got {num_frames}")
    units, langevin = _needed("ase.units", "ase"), _needed("ase.md.langevin", "ase")
    random = np.random.RandomState(seed)
    atoms = system.build()
    spread = np.sqrt(atoms.get_masses() * units.kB * system.temperature)
    atoms.set_momenta(random.standard_normal((len(atoms), 3)) * spread[:, None])
    dynamics = langevin.Langevin(
        atoms, system.time_step * units.fs, temperature_K=system.temperature,
        friction=0.02 / units.fs, fixcm=False, rng=random,
    )  # fmt: skip
    dynamics.run(_BURN_IN)
    kept: list[tuple[np.ndarray, float, np.ndarray]] = []
    for _ in range(num_frames):
        dynamics.run(system.every)
        kept.append((atoms.get_positions(), atoms.get_potential_energy(), atoms.get_forces()))
    columns = (torch.from_numpy(np.stack(column)).double() for column in zip(*kept, strict=True))
    return dict(zip(("positions", "energy", "forces"), columns, strict=True))
