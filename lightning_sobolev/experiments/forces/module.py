"""Fit energies of atoms: an ordinary LightningModule.

Forces are minus the derivative with respect to the positions, the network's input; a
``SobolevCallback`` teaches them from outside.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchmetrics import MeanAbsoluteError

from lightning_sobolev.experiments.common.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    configured,
)
from lightning_sobolev.experiments.forces.data import ForcesDataModule
from lightning_sobolev.experiments.forces.schnet import SchNet
from lightning_sobolev.functional.derivatives import tape_jet
from lightning_sobolev.plugin import SobolevCallback


class ForceFieldModule(pl.LightningModule):
    """Squared energy error in units of the training energies' standard deviation.

    Logs ``train/loss``; ``val/`` and ``test/energy_mae`` (eV) and ``force_mae`` (eV/Å, mean over
    atoms and components). The network's buffers ``shift`` and ``scale`` take mean and standard
    deviation of the training energies, so that it answers in eV and a checkpoint holds all of it.

    Args:
        net: Maps positions in Å to energies in eV.
        optimizer: Makes the optimizer of the parameters.
        scheduler: Makes the schedule of its learning rate.
        energy_weight: Factor of the loss. With 0 forces alone are learned; then the constant of
            the energy, which no force tells, is set to the training frames' mean before a test.

    Raises:
        ValueError: If the weight is negative, or zero where no ``SobolevCallback`` teaches forces.
    """

    def __init__(
        self,
        net: SchNet,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        *,
        energy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not energy_weight >= 0:
            raise ValueError(f"energy_weight must be at least 0, got {energy_weight}")
        self.net, self.energy_weight = net, energy_weight
        self.optimizer, self.scheduler = optimizer, scheduler
        names = [f"{stage}_{of}_mae" for stage in ("val", "test") for of in ("energy", "force")]
        self.errors = nn.ModuleDict({name: MeanAbsoluteError() for name in names})

    def on_fit_start(self) -> None:
        """Take the unit of energy from the training frames."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        forces_are_taught = any(isinstance(callback, SobolevCallback) for callback in callbacks)
        if self.energy_weight == 0 and not forces_are_taught:
            raise ValueError(
                "energy_weight must be above 0 where no SobolevCallback teaches forces, got 0: "
                "nothing would be learned"
            )
        mean, deviation = self._data().energy_statistics()
        self.net.shift.fill_(mean)
        self.net.scale.fill_(deviation)

    def forward(self, positions: Float[Tensor, "batch atoms 3"]) -> Float[Tensor, " batch"]:
        """Return energies in eV."""
        energies: Tensor = self.net(positions)
        return energies

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the squared error of the energies."""
        del batch_idx
        energy = self.net(batch["positions"])
        loss = mse_loss(energy / self.net.scale, batch["energy"] / self.net.scale)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (self.global_step + 1) % every == 0:
            self.log("train/loss", loss, batch_size=len(energy))
        return self.energy_weight * loss

    def on_validation_start(self) -> None:
        """Set the constant of the energy where nothing taught it."""
        self._align()

    def on_test_start(self) -> None:
        """Set the constant of the energy where nothing taught it."""
        self._align()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare energies and forces."""
        del batch_idx
        self._compare("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Compare energies and forces."""
        del batch_idx
        self._compare("test", batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule."""
        return configured(self.net.parameters(), self.optimizer, self.scheduler)

    def _compare(self, stage: str, batch: dict[str, Tensor]) -> None:
        jet = tape_jet(self.net, batch["positions"])
        gradient = jet.vjp(torch.ones_like(jet.value)[None])[0]
        for name, ours, theirs in (
            ("energy_mae", jet.value, batch["energy"]),
            ("force_mae", gradient, batch["gradient"]),  # the sign of both is the same
        ):
            error: Any = self.errors[f"{stage}_{name}"]
            error.update(ours.detach().contiguous(), theirs)
            self.log(f"{stage}/{name}", error, batch_size=len(theirs))

    @torch.no_grad()
    def _align(self) -> None:
        if self.energy_weight == 0:
            columns = self._data().training_points().columns
            positions = columns["positions"].to(self.device)
            energies = torch.cat([self.net(part) for part in torch.split(positions, 256)])
            self.net.shift += (columns["energy"].to(self.device) - energies).mean()

    def _data(self) -> ForcesDataModule:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ForcesDataModule):
            raise ValueError(
                f"ForceFieldModule needs a ForcesDataModule, got {type(data).__name__}"
            )
        return data
