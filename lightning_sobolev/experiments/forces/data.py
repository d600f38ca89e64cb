"""Frames of a small system of atoms with energies and forces, as batches."""

from pathlib import Path

import torch

from lightning_sobolev.experiments.common.tables import TableDataModule
from lightning_sobolev.experiments.forces.frame_files import stored_frames
from lightning_sobolev.experiments.forces.systems import atomic_system
from lightning_sobolev.loading import ResumableLoader, Table

# Seeds of the three trajectories, which have nothing in common.
_TRAIN, _VALIDATION, _TEST = 0, 1, 2


class ForcesDataModule(TableDataModule):
    """Energies and their gradients at the configurations of molecular dynamics.

    A batch is ``{"positions": [batch, atoms, 3], "energy": [batch], "gradient": [batch, atoms,
    3]}`` in Å, eV and eV/Å. The gradient is minus the forces. Training, validation and test
    frames are from three trajectories; they are simulated on first use and kept in ``root``.

    Args:
        system: ``cu13``, ``morse13`` or ``ethanol``.
        num_frames: Training frames, drawn from the training trajectory.
        root: Folder of the simulated frames.
        pool: Length of the training trajectory.
        batch_size: Frames of a training batch.
        steps_per_epoch: Batches that count as one epoch.
        seed: Seed of which frames are drawn and of their order. None takes one from the system.
        num_validation_frames: Length of the validation trajectory.
        num_test_frames: Length of the test trajectory.
        dtype: Floating-point type of the batches; torch's default when None.
    """

    def __init__(
        self,
        system: str,
        num_frames: int,
        *,
        root: str | Path = "recordings/frames",
        pool: int = 1000,
        batch_size: int = 16,
        steps_per_epoch: int = 1000,
        seed: int | None = 0,
        num_validation_frames: int = 100,
        num_test_frames: int = 300,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_size, steps_per_epoch, seed, dtype)
        atomic_system(system)
        if not 2 <= num_frames <= pool:
            raise ValueError(f"num_frames must be between 2 and pool={pool}, got {num_frames}")
        self.system, self.num_frames, self.root = system, num_frames, Path(root)
        self._lengths = {_TRAIN: pool, _VALIDATION: num_validation_frames, _TEST: num_test_frames}

    def prepare_data(self) -> None:
        """Simulate what is not there yet."""
        for trajectory in self._lengths:
            self._frames(trajectory)

    def training_points(self) -> Table:
        """Return the drawn training frames."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(self._lengths[_TRAIN], generator=generator)[: self.num_frames]
        return self.table(self._frames(_TRAIN)[rows])

    def validation_points(self) -> Table:
        """Return the frames of the validation trajectory."""
        return self.table(self._frames(_VALIDATION).columns)

    def test_points(self) -> Table:
        """Return the frames of the test trajectory."""
        return self.table(self._frames(_TEST).columns)

    def val_dataloader(self) -> ResumableLoader:
        """Return every validation frame once."""
        return self.ordered(self.validation_points())

    def energy_statistics(self) -> tuple[float, float]:
        """Return mean and standard deviation of the training energies, in eV."""
        energy = self.training_points().columns["energy"].double()
        return float(energy.mean()), float(energy.std(correction=0))

    def _frames(self, trajectory: int) -> Table:
        length = self._lengths[trajectory]
        columns = stored_frames(self.root, self.system, length, seed=trajectory)
        forces = columns.pop("forces")
        return Table({**columns, "gradient": -forces})
